"""What a job says while it works: plain lines on standard error, which the workflow keeps in the job's log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from effopd.common.errors import ArtifactError
from effopd.common.strict_json import read_regular

INTERVAL_SECONDS = 2.0


def say(text: str) -> None:
    """Print one line to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Says how far a loop is, at most every two seconds, with what it found and the time left."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.first = what, total, done
        self.started = self.last = time.monotonic()

    def update(self, done: int, **facts: float) -> None:
        now = time.monotonic()
        if done < self.total and now - self.last < INTERVAL_SECONDS:
            return
        self.last = now
        left = (now - self.started) / max(1, done - self.first) * (self.total - done)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in facts.items())
        say(f"{self.what} {done}/{self.total}" + (f" ({left:.0f} s left)" if left >= 1 else "") + f": {shown}")


def lines_of(log: str | Path) -> list[str]:
    """The lines of a log; none if it cannot be read."""
    try:
        return read_regular(Path(log)).decode("utf-8", errors="replace").strip().splitlines()
    except (OSError, ValueError, ArtifactError):
        return []


def changed_at(log: str | Path) -> float:
    """When a log was last written, in seconds since the epoch; 0 if it cannot be read."""
    try:
        return os.stat(log).st_mtime
    except (OSError, ValueError):
        return 0.0


def last_said(logs: Iterable[str | Path]) -> str:
    """The last line of a job's logs: its error where it ended with one, else how far it is. Empty if it has none."""
    for log in logs:
        lines = lines_of(log)
        errors = [line for line in lines if line.startswith("error: ")]
        if errors or lines:
            return (errors or lines)[-1]
    return ""


def errors_at_the_end(logs: Iterable[str | Path]) -> list[str]:
    """The errors that a job ended with, a line each: most end with one, a preflight with one for each failure."""
    found: list[str] = []
    for log in logs:
        lines = lines_of(log)
        while lines and lines[-1].startswith("error: "):
            found.insert(0, lines.pop())
    return found


def as_error(said: str) -> str:
    """The error of a failed job that said this last, also if it could not say one."""
    if said.startswith("error: "):
        return said
    return f"error: it ended without a message (killed?) after saying: {said or 'nothing'}"
