"""A gate on the rollouts that a step was trained on: nothing is generated."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from effopd.artifacts.cost import cost_row
from effopd.extrapolation.gate import GateValue
from effopd.models.models import Weights, lend_weights, load_weights_into, release_weights
from effopd.teachers.scoring import ReverseKL

Items = list[float]


@dataclass
class RolloutGate:
    """The exact reverse KL per token at the contexts that the student met when it wrote the rollouts.

    They are those of the weights before the step, so a candidate is judged where the student has been, not where it
    would go. `model` is given the `weights` to judge. `divergence` is of this rank's shard of the rollouts, which have
    `tokens` completion tokens in all; `gather` returns the items of every rank, in order. Where they are `lent`, the
    model holds the very weights while it is judged, and none in between.
    """

    model: PreTrainedModel
    weights: Callable[[], Weights]
    divergence: ReverseKL
    step: int
    tokens: int
    gather: Callable[[Items], list[Items]] = lambda items: [items]
    lent: bool = False

    def judge(self, coefficient: float) -> GateValue:
        """The mean over all tokens, and the sum over each rollout's; the teacher is asked once for all candidates."""
        (lend_weights if self.lent else load_weights_into)(self.model, self.weights())
        started, before = time.perf_counter(), self.divergence.scored_tokens
        mine = [float(row.sum(dtype=np.float64)) for row in self.divergence.of(self.model)]
        if self.lent:  # so that the next candidate's weights do not come on top of these
            release_weights(self.model)
        items = list(itertools.chain(*self.gather(mine)))
        value, scored = sum(items) / self.tokens, self.divergence.scored_tokens - before
        cost = cost_row("gate: score", self.step, time.perf_counter() - started, scored=scored, judged=self.tokens)
        return GateValue(value, -value, items, [cost])
