"""What is minimised: the objective's loss of some rollouts, as a function of the student's logits.

docs/objectives.md has the formulas; losses.py the pure functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from effopd.common.registry import load
from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.losses.divergences import (
    distillation_advantages,
    extrapolated_logprobs,
    gathered,
    policy_gradient_loss,
    token_logprobs,
    top_k_with_tail,
    truncated_importance_weights,
    vocabulary_logprobs,
    with_tail,
)
from effopd.models.lm_head import Head, logits_of
from effopd.teachers.scoring import Scores


class MicroBatch:
    """The rollouts of one forward and backward pass with their scores; M completion tokens.

    `total_tokens` counts those of the whole step, on all ranks: the losses of its micro-batches add up to the mean over
    them. `sums` are over the tokens whose loss has been asked for.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        scores: Scores,
        training: dict[str, Any],
        total_tokens: int,
        pad_id: int,
        device: torch.device,
        teacher_head: Head | None = None,  # for the full vocabulary
    ) -> None:
        def tensor(rows: list[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(rows)).to(device)

        self.objective, self.total_tokens = training["objective"], total_tokens
        self.temperature, self.importance_limit = training["temperature"], training["importance_limit"]
        self.batch = PaddedBatch.of(rollouts, pad_id, device)
        self.targets = self.batch.targets[self.batch.mask]  # int64 [M]
        self.rollout_logprobs, self.teacher_logprobs = tensor(rollouts.logprobs), tensor(scores.logprobs)  # float32 [M]
        self.sums: dict[str, torch.Tensor] = {}  # float64 scalars
        support = self.objective["support"]
        if support == "top_k":
            self.top_ids = tensor(scores.top_ids).long()  # [M, K]
            self.teacher_buckets = with_tail(tensor(scores.top_logprobs))  # float32 [M, K + 1]
        if support == "full":
            assert teacher_head is not None
            self.teacher_logits = logits_of(teacher_head, tensor(scores.hidden_states))
        self.goal_logprobs = self.teacher_logprobs
        if self.objective["lambda"] != 1:
            reference = tensor(scores.reference_logprobs)
            self.goal_logprobs = extrapolated_logprobs(self.teacher_logprobs, reference, self.objective["lambda"])
            self._count(reward=self.teacher_logprobs - reference)
        self._count(reverse_kl=(self.rollout_logprobs - self.teacher_logprobs).double())

    def loss(self, logits: torch.Tensor, rows: slice) -> torch.Tensor:
        """The share of the step's loss that the completion tokens in `rows` have: their logits [m, V] -> scalar.

        The policy is the one that was sampled from, at the rollouts' temperature.
        """
        logits = logits if self.temperature == 1 else logits / self.temperature
        support, targets = self.objective["support"], self.targets[rows]
        if support == "sampled":
            logprobs = token_logprobs(logits, targets)
            weights = self._importance(logprobs, rows)
            advantages = distillation_advantages(self.goal_logprobs[rows], self.rollout_logprobs[rows])
            return policy_gradient_loss(logprobs, advantages, weights, self.total_tokens)
        if support == "top_k":
            self._importance(gathered(logits.detach(), targets) - logits.detach().logsumexp(-1), rows)
            student, teacher = top_k_with_tail(logits, self.top_ids[rows]), self.teacher_buckets[rows]
            self._count(student_top_mass=-student[:, -1].detach().expm1(), teacher_top_mass=-teacher[:, -1].expm1())
        else:
            student, teacher = vocabulary_logprobs(logits, self.teacher_logits(rows))
            self._importance(gathered(student.detach(), targets), rows)
        # The divergence is exact at each position: that an engine drew the tokens needs no weight.
        return load("objectives", self.objective["divergence"])(student, teacher).sum() / self.total_tokens

    def _importance(self, logprobs: torch.Tensor, rows: slice) -> torch.Tensor:
        weights = truncated_importance_weights(logprobs, self.rollout_logprobs[rows], self.importance_limit)
        difference = (logprobs.detach() - self.rollout_logprobs[rows]).abs()
        self._count(
            importance_weight=weights,
            importance_clipped=weights == self.importance_limit,
            logprob_difference=difference,
        )
        return weights

    def _count(self, **values: torch.Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.sum().double()
