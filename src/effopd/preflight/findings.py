"""What a check found, and how the checks of a pair are run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

PASSED, WARNED, FAILED, ACCEPTED, NOT_RUN = "passed", "warned", "failed", "accepted", "not run"


@dataclass(frozen=True)
class Finding:
    """The outcome of a check, what was measured and, unless all is well, why it matters and what to do."""

    check: str
    outcome: str  # PASSED, WARNED, FAILED, ACCEPTED (failed, and `preflight.accept` names it) or NOT_RUN
    measured: str
    why: str = ""
    remedy: str = ""

    @property
    def line(self) -> str:
        """What, why, and what to do, in one line."""
        return " ".join(f"{self.check}: {self.measured}. {self.why} {self.remedy}".split())


def passed(check: str, measured: str) -> Finding:
    """The finding of a check that passed."""
    return Finding(check, PASSED, measured)


def warned(check: str, measured: str, why: str, remedy: str) -> Finding:
    """The finding of a check that stops nothing."""
    return Finding(check, WARNED, measured, why, remedy)


def failed(check: str, measured: str, why: str, remedy: str) -> Finding:
    """The finding of a check that stops the run."""
    return Finding(check, FAILED, measured, why, remedy)


class Checks:
    """Runs checks and keeps what they found; `accepted` names those whose failure is known and stops nothing."""

    def __init__(self, accepted: Collection[str]) -> None:
        self.accepted = accepted
        self.findings: list[Finding] = []

    def run(self, check: str, function: Callable[..., Finding], *arguments: Any) -> bool:
        """Run a check, whose first argument is its name. Returns whether what builds on it can be checked.

        One that breaks has failed: what it was given is not what training needs.
        """
        try:
            finding = function(check, *arguments)
        except Exception as error:
            finding = failed(
                check,
                f"the check itself broke off ({type(error).__name__}: {error})",
                "Training would meet the same.",
                "Mend what the message names, or report it.",
            )
        sound = finding.outcome != FAILED
        if not sound and check in self.accepted:
            finding = replace(finding, outcome=ACCEPTED)
        self.findings.append(finding)
        return sound

    def leave_out(self, checks: Collection[str], because: str) -> None:
        """Note checks that cannot be run."""
        self.findings += [Finding(check, NOT_RUN, because) for check in checks]

    @property
    def failures(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.outcome == FAILED]

    def count(self) -> str:
        """How many checks had each outcome, those that did not pass by name."""
        parts = [f"{sum(finding.outcome == PASSED for finding in self.findings)} passed"]
        for outcome in (WARNED, ACCEPTED, NOT_RUN, FAILED):
            if names := [finding.check for finding in self.findings if finding.outcome == outcome]:
                parts.append(f"{len(names)} {outcome} ({', '.join(names)})")
        return ", ".join(parts)

    def rows(self) -> list[dict[str, str]]:
        return [asdict(finding) for finding in self.findings]
