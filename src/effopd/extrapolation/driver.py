"""What happens at a trigger: judge the current weights, search their ray, and stay at what was accepted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from effopd.common.progress import say
from effopd.extrapolation.gate import Gate, GateValue
from effopd.extrapolation.modules import refine
from effopd.extrapolation.search import SearchResult, first_step, search
from effopd.specs.extrapolation import SearchSettings


class Ray(Protocol):
    """Weights that can be put anywhere on the ray of their last update, wherever and however they are kept."""

    @property
    def modules(self) -> Collection[str]:
        """Names of the parts of the weights that can have a coefficient of their own."""

    def put(self, coefficients: Mapping[str, float]) -> None:
        """Make the weights current + c (current - anchor), with a coefficient c for each module.

        They are measured from the current weights wherever they are now, so that 0 brings these back to the bit.
        """


@dataclass(frozen=True)
class Decision:
    """What was judged at a trigger, and if the weights are left."""

    settings: SearchSettings
    result: SearchResult
    values: Mapping[float, GateValue]  # by coefficient, in the order asked; 0, the current weights, first
    coefficients: Mapping[str, float]  # accepted, by module: all the result's, unless they were refined
    module_trials: int  # candidates judged beyond the values, to refine them
    costs: list[dict[str, Any]]  # what all judging took: rows of the cost ledger, with the candidate's coefficient

    def __str__(self) -> str:
        return f"coefficient {self.coefficient:g} ({self.result.reason})"

    @property
    def coefficient(self) -> float:
        """What the search accepted; 0: the weights stay as they are."""
        return self.result.coefficient

    @property
    def tie(self) -> bool:
        """Whether something was accepted that scored exactly as the current weights: the gate saw no difference."""
        return self.coefficient != 0 and self._ties(self.coefficient)

    def _ties(self, coefficient: float) -> bool:
        return self.values[coefficient].usable_score == self.values[0.0].usable_score

    def record(self, step: int, *, metric: str, update_norm: Mapping[str, float]) -> dict[str, Any]:
        """The decision as its file records it: what was tried at a step, and what training goes on from."""
        entries = {coefficient: value.entry(coefficient) for coefficient, value in self.values.items()}
        by_module = {"modules": dict(self.coefficients), "module_trials": self.module_trials}
        return {
            **(by_module if self.settings.refines else {}),
            "step": step,
            "coefficient": self.coefficient,
            "reason": self.result.reason,
            "tie": self.tie,
            "accept_ties": self.settings.accept_ties,
            "metric": metric,
            "current": entries[0.0],
            "trials": [
                {**entries[t.coefficient], "accepted": t.accepted, "tie": self._ties(t.coefficient)}
                for t in self.result.trials
            ],
            "update_norm": dict(update_norm),
        }


def extrapolate(
    ray: Ray, gate: Gate, settings: SearchSettings, *, previous: float = 1.0, warn: str | None = None
) -> Decision:
    """Search the ray of the current weights for better ones, as the gate judges, and leave it at what was accepted.

    Args:
        ray: The weights, at coefficient 0.
        gate: Judges them where the ray has put them. It is asked once about each coefficient, first about 0, and of a
            search by module once about each candidate that this adds.
        settings: How to search.
        previous: The coefficient that the last search ended with; a line search starts there.
        warn: What a warning begins with, if one is to be printed.

    Returns:
        The decision. Where all its coefficients are 0 the weights are the current ones.

    Raises:
        Whatever the gate raises, with the current weights put back.
    """
    stay = chosen = dict.fromkeys(ray.modules, 0.0)
    costs: list[dict[str, Any]] = []

    def judge(coefficient: float) -> GateValue:
        value = gate.judge(coefficient)
        costs.extend(value.costs(coefficient))
        return value

    def score(coefficient: float) -> float:
        if coefficient not in values:
            ray.put(dict.fromkeys(stay, coefficient))
            values[coefficient] = judge(coefficient)
        return values[coefficient].usable_score

    def score_by_module(coefficients: Mapping[str, float]) -> float:
        ray.put(coefficients)
        return judge(result.coefficient).usable_score  # drawn as for the candidate that it is compared with

    values = {0.0: judge(0.0)}
    try:
        result = search(
            settings.search,
            score,
            score(0.0),
            settings.coefficients,
            settings.accept_ties,
            first_step(previous),
            settings.options,
        )
        accepted, module_trials = dict.fromkeys(stay, result.coefficient), 0
        if settings.refines:
            accepted, module_trials = refine(score_by_module, result, stay, settings.accept_ties)
        chosen = accepted
    finally:
        ray.put(chosen)
    if result.warning and warn is not None:
        say(f"{warn}{result.warning}")
    return Decision(settings, result, values, chosen, module_trials, costs)
