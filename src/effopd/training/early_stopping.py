"""Early stopping: training ends once its accuracy on validation problems has not risen for some evaluations.

The paper's reinforcement learning stops after five evaluations without gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effopd.training.trainer import Trainer

BEST = "best"  # folder, beside a resume point, of the weights that it may go back to
METRIC = "validation_accuracy"  # a column of training.parquet, filled after the steps that were evaluated


@dataclass(frozen=True)
class EarlyStopping:
    """Evaluates every `every` steps and at the last, and ends after `patience` evaluations in a row without gain."""

    every: int
    patience: int
    steps: int  # after which training ends in any case
    evaluate: Callable[[Trainer], float]  # called on all ranks, with the same value on each

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps

    def over(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether training ends after these steps."""
        since_best = sum(METRIC in row and row["step"] > best_step(rows) for row in rows)
        return bool(since_best >= self.patience)


def best_step(rows: Sequence[Mapping[str, Any]]) -> int:
    """The first step with the highest accuracy; the last one if none was evaluated."""
    evaluated = [row for row in rows if METRIC in row]
    best = max(evaluated, key=lambda row: row[METRIC], default=rows[-1])
    return int(best["step"])
