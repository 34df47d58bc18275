"""How far to go: searches over the coefficient, and the rule that accepts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effopd.common.registry import load

Score = Callable[[float], float]  # coefficient -> score of its candidate, higher is better

LONGEST_STEP = 1024.0  # where a line search that keeps improving stops
SHORTEST_STEP = 0.5  # the shortest step forward that it tries


@dataclass(frozen=True)
class Trial:
    """One candidate that was scored, and whether it displaced the best so far."""

    coefficient: float
    score: float
    accepted: bool


@dataclass(frozen=True)
class SearchResult:
    """What a search tried, in order, and the coefficient it ended with (0: keep the current weights)."""

    trials: list[Trial]
    coefficient: float
    reason: str
    warning: str = ""  # one line where the decision rests on nothing; else empty


def better(value: float, best: float, accept_ties: bool) -> bool:
    """Whether a score displaces the best so far. One that is not finite, on either side, never does."""
    return math.isfinite(value) and math.isfinite(best) and (value > best or (accept_ties and value == best))


def search(
    kind: str,
    score: Score,
    current: float,
    coefficients: Sequence[float],
    accept_ties: bool,
    start: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Look for the coefficient to accept, given the score of the current weights.

    `kind` names a function of `Trials`, the coefficients, where a line search starts, and `options` as keywords; it
    returns why it ended. Here: `first_failure`, `all` (`best_of_all`) and `line`; others by the registry. Scores that
    are not finite are never accepted, and if the current one is not, nothing is tried.
    """
    if not math.isfinite(current):
        why = "the score of the current weights is not finite"
        return SearchResult([], 0.0, why, f"nothing is extrapolated: {why}")
    tracker = Trials(score, current, accept_ties)
    reason = load("searches", kind)(tracker, coefficients, start, **(options or {}))
    warning = ""
    if tracker.coefficient == 0:
        reason = "no candidate was accepted"
    elif all(trial.score == current for trial in tracker.trials):
        warning = (
            f"every candidate scores the same as the current weights ({current:g}), and ties are accepted. Write "
            "accept_ties: false, or have the gate ask more."
        )
    return SearchResult(tracker.trials, tracker.coefficient, reason, warning)


def first_step(previous: float) -> float:
    """Where a line search starts that follows one which ended with the coefficient `previous`: there, if forward."""
    return min(previous, LONGEST_STEP) if previous > 0 else 1.0


class Trials:
    """What a search has tried, and the best so far: `coefficient`, 0 for the current weights."""

    def __init__(self, score: Score, current: float, accept_ties: bool) -> None:
        self.score, self.best, self.accept_ties = score, current, accept_ties
        self.coefficient = 0.0
        self.trials: list[Trial] = []

    def trial(self, coefficient: float) -> bool:
        """Score a candidate, which takes a while. Returns whether it is the best so far now."""
        value = self.score(coefficient)
        accepted = better(value, self.best, self.accept_ties)
        self.trials.append(Trial(coefficient, value, accepted))
        if accepted:
            self.best, self.coefficient = value, coefficient
        return accepted


def first_failure(tracker: Trials, coefficients: Sequence[float], start: float) -> str:
    """In turn, until one is rejected (paper section 2)."""
    for coefficient in coefficients:
        if not tracker.trial(coefficient):
            return f"{coefficient:g} was rejected"
    return "every coefficient was accepted"


def best_of_all(tracker: Trials, coefficients: Sequence[float], start: float) -> str:
    """All of them."""
    for coefficient in coefficients:
        tracker.trial(coefficient)
    return "the best of all"


def line(tracker: Trials, coefficients: Sequence[float], start: float) -> str:
    """Double while it improves, then try the midpoint; if the start fails halve it, then step back to the anchor.

    A step back averages noise away where the learning rate is high. It chooses its own coefficients, and its steps must
    improve the score: a tie is not accepted, whatever `accept_ties` says.
    """
    tracker.accept_ties = False
    coefficient = start
    if tracker.trial(coefficient):
        while coefficient < LONGEST_STEP and tracker.trial(2 * coefficient):
            coefficient *= 2
        if coefficient >= LONGEST_STEP:
            return "the longest step was accepted"
        tracker.trial(1.5 * coefficient)
        return f"{2 * coefficient:g} was rejected"
    while coefficient > SHORTEST_STEP:
        coefficient /= 2
        if tracker.trial(coefficient):
            return f"{2 * coefficient:g} was rejected, {coefficient:g} accepted"
    if tracker.trial(-0.25):
        tracker.trial(-0.5)
    return "forward was rejected, back accepted"
