"""What a gate is, what it draws and what it says: the same for whoever asks it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from effopd.common.randomness import generator, seed_of

BLIND = ("random", "always")  # metrics that are controls


@dataclass(frozen=True)
class GateValue:
    """What a gate says of some weights."""

    value: float  # the metric, as people read it
    score: float  # higher is better
    per_item: Sequence[float] = ()
    cost: Sequence[Mapping[str, Any]] = ()  # what it took to say so: rows of the cost ledger

    @property
    def usable_score(self) -> float:
        """The score; NaN if any of the numbers is not finite."""
        return self.score if all(map(math.isfinite, (self.value, self.score, *self.per_item))) else math.nan

    def entry(self, coefficient: float) -> dict[str, Any]:
        """These weights' entry in a decision; nothing but the coefficient if any number is not finite."""
        if math.isnan(self.usable_score):
            return {"coefficient": coefficient, "value": None, "score": None, "per_item": []}
        return {"coefficient": coefficient, "value": self.value, "score": self.score, "per_item": list(self.per_item)}

    @staticmethod
    def from_entry(entry: Mapping[str, Any]) -> GateValue:
        """What a decision's entry says; NaN if it was not finite."""
        if entry["score"] is None:
            return GateValue(math.nan, math.nan)
        return GateValue(entry["value"], entry["score"], entry["per_item"])

    def costs(self, coefficient: float) -> list[dict[str, Any]]:
        """The rows of its cost, of the candidate with this coefficient."""
        return [{**row, "coefficient": coefficient} for row in self.cost]


class Gate(Protocol):
    """Judges weights if they are put: a candidate's, or the current ones."""

    def judge(self, coefficient: float) -> GateValue:
        """What the weights are worth. `coefficient` (0: the current weights) decides what is drawn for them."""


@dataclass(frozen=True)
class BlindGate:
    """A control, which does not look at the weights: "always" prefers the longest step, "random" draws a number."""

    metric: str
    seed: int
    step: int

    def judge(self, coefficient: float) -> GateValue:
        if self.metric == "always":
            value = abs(coefficient)
        else:
            value = generator(self.seed, "random gate", self.step, f"{coefficient:g}").random()
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
