"""What a gate draws, what it says, and how a trigger's decision is written down: the same for whoever asks it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effopd.common.randomness import generator, seed_of
from effopd.extrapolation.search import Outcome

BLIND = ("random", "always")  # metrics that are controls


@dataclass(frozen=True)
class GateValue:
    """What a gate says of some weights."""

    value: float  # the metric, as people read it
    score: float  # higher is better
    per_item: Sequence[float] = ()

    def entry(self, coefficient: float) -> dict[str, Any]:
        """The ledger's entry of these weights; nothing but the coefficient if any number is not finite."""
        finite = all(math.isfinite(number) for number in (self.value, self.score, *self.per_item))
        return {
            "coefficient": coefficient,
            "value": self.value if finite else None,
            "score": self.score if finite else None,
            "per_item": list(self.per_item) if finite else [],
        }


def score_of(entry: Mapping[str, Any]) -> float:
    """The score in a ledger's entry; NaN where it was not finite."""
    return math.nan if entry["score"] is None else float(entry["score"])


def blind_value(metric: str, seed: int, step: int, coefficient: float) -> GateValue:
    """What the controls say of a candidate at a trigger, whose weights they do not look at.

    "always" prefers the longest step; "random" draws a number.
    """
    value = (
        abs(coefficient) if metric == "always" else generator(seed, "random gate", step, f"{coefficient:g}").random()
    )
    return GateValue(float(value), float(value))


def gate_rows(seed: int, source: str, size: int, examples: int, samples: int) -> list[int]:
    """The rows of a split of `size` problems that a gate asks about: `examples` of them, each `samples` times."""
    chosen = generator(seed, "gate examples", source).choice(size, examples, replace=False)
    return [int(i) for i in sorted(chosen) for _ in range(samples)]


def gate_seeds(seed: int, step: int, coefficient: float, count: int, paired: bool) -> list[int]:
    """The seeds of a candidate's completions: of all candidates of a trigger alike where `paired`.

    Unpaired, each candidate has draws of its own, as in the released code.
    """
    draw = "paired" if paired else f"{coefficient:g}"
    return [seed_of(seed, "gate", step, draw, position) for position in range(count)]


def decision(
    step: int,
    outcome: Outcome,
    values: Mapping[float, Mapping[str, Any]],
    *,
    accept: str,
    metric: str,
    update_norm: Mapping[str, float],
) -> dict[str, Any]:
    """The result of a ledger: what a trigger's search tried, and what training goes on from."""
    return {
        "step": step,
        "coefficient": outcome.coefficient,
        "reason": outcome.reason,
        "accept": accept,
        "metric": metric,
        "current": values[0.0],
        "trials": [{**values[t.coefficient], "accepted": t.accepted} for t in outcome.trials],
        "update_norm": dict(update_norm),
    }
