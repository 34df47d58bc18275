"""What is minimized: the objective's loss of some rollouts, as a function of the student's logits.

docs/objectives.md has the formulas; losses/divergences.py the pure functions. Shapes: M completion tokens of a
micro-batch, m of them in a chunk; V vocabulary entries; K of the teacher's top tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from effopd.common.registry import is_added, load
from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.losses.divergences import (
    distillation_advantages,
    extrapolated_logprobs,
    gather_logprobs,
    policy_gradient_loss,
    token_logprobs,
    top_k_with_tail,
    truncated_importance_weights,
    vocabulary_logprobs,
    with_tail,
)
from effopd.losses.metrics import Metrics, sums_of
from effopd.models.lm_head import Head, Logits, logits_of
from effopd.specs.segments import TrainingSettings
from effopd.teachers.scoring import Scores


@dataclass(frozen=True)
class TokenScores:
    """What an objective is given of m completion tokens beside the student's logits [m, V] (docs/plugins.md).

    `training.objective.support` says which of the last three there are.
    """

    tokens: torch.Tensor  # int64 [m]
    rollout_logprobs: torch.Tensor  # float32 [m], of the policy that was sampled from
    teacher_logprobs: torch.Tensor  # float32 [m]
    reference_logprobs: torch.Tensor | None  # float32 [m], of the untrained student, if `reward_scale` is not 1
    top_ids: torch.Tensor | None  # int64 [m, K] (top_k)
    teacher_buckets: torch.Tensor | None  # float32 [m, K + 1], log-probabilities of those tokens and of all others
    teacher_logits: torch.Tensor | None  # [m, V] (full)


@dataclass(frozen=True)
class ScoredBatch:
    """Rollouts of one forward and backward pass with their scores, on the student's device."""

    batch: PaddedBatch
    rollout_logprobs: torch.Tensor  # float32 [M], of the policy that was sampled from
    teacher_logprobs: torch.Tensor  # float32 [M]
    reference_logprobs: torch.Tensor | None  # float32 [M], of the untrained student (ExOPD)
    top_ids: torch.Tensor | None  # int64 [M, K] (top_k)
    teacher_buckets: torch.Tensor | None  # float32 [M, K + 1], log-probabilities of those tokens and of all others
    teacher_logits: Logits | None  # a slice of the M positions -> [m, V] (full)

    @staticmethod
    def from_rollouts(
        rollouts: Rollouts, scores: Scores, pad_id: int, device: torch.device, teacher_head: Head | None = None
    ) -> ScoredBatch:
        """What `scores` holds, as tensors; hidden states need the teacher's head."""

        def tensor(rows: list[np.ndarray]) -> torch.Tensor | None:
            return torch.from_numpy(np.concatenate(rows)).to(device) if rows else None

        batch = PaddedBatch.of(rollouts, pad_id, device)
        top_ids, top_logprobs, states = map(tensor, (scores.top_ids, scores.top_logprobs, scores.hidden_states))
        return ScoredBatch(
            batch,
            rollout_logprobs=batch.flatten(rollouts.logprobs),
            teacher_logprobs=batch.flatten(scores.logprobs),
            reference_logprobs=tensor(scores.reference_logprobs),
            top_ids=None if top_ids is None else top_ids.long(),
            teacher_buckets=None if top_logprobs is None else with_tail(top_logprobs),
            teacher_logits=None if states is None or teacher_head is None else logits_of(teacher_head, states),
        )

    @cached_property
    def targets(self) -> torch.Tensor:
        """The completions' tokens, int64 [M]."""
        return self.batch.targets[self.batch.mask]

    def at(self, rows: slice) -> TokenScores:
        """What there is of the completion tokens in `rows`."""

        def there(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[rows]

        return TokenScores(
            tokens=self.targets[rows],
            rollout_logprobs=self.rollout_logprobs[rows],
            teacher_logprobs=self.teacher_logprobs[rows],
            reference_logprobs=there(self.reference_logprobs),
            top_ids=there(self.top_ids),
            teacher_buckets=there(self.teacher_buckets),
            teacher_logits=None if self.teacher_logits is None else self.teacher_logits(rows),
        )

    @property
    def metrics(self) -> Metrics:
        """What rollouts and scores alone say: the sampled reverse KL, and ExOPD's reward."""
        known = {} if self.reference_logprobs is None else {"reward": self.teacher_logprobs - self.reference_logprobs}
        return sums_of(**known, reverse_kl=(self.rollout_logprobs - self.teacher_logprobs).double())


def distillation_loss(
    training: TrainingSettings, total_tokens: int, micro: ScoredBatch, logits: torch.Tensor, rows: slice
) -> tuple[torch.Tensor, Metrics]:
    """The loss of the completion tokens in `rows`, whose logits [m, V] are given, and metrics of these tokens.

    `total_tokens` counts those of the whole step, on all ranks: losses of chunks, micro-batches and ranks add up to the
    mean over them. The policy is the one that was sampled from, at the rollouts' temperature.
    """
    objective, divergence, given = training.objective, training.objective.divergence, micro.at(rows)
    logits = logits if training.temperature == 1 else logits / training.temperature
    metrics: Metrics = {}
    if objective.support == "sampled":
        logprobs = token_logprobs(logits, given.tokens)
    elif objective.support == "top_k":
        assert given.top_ids is not None
        assert given.teacher_buckets is not None
        logprobs = gather_logprobs(logits.detach(), given.tokens) - logits.detach().logsumexp(-1)
        student, teacher = top_k_with_tail(logits, given.top_ids), given.teacher_buckets
        metrics = sums_of(student_top_mass=-student[:, -1].detach().expm1(), teacher_top_mass=-teacher[:, -1].expm1())
    else:
        assert given.teacher_logits is not None
        student, teacher = vocabulary_logprobs(logits, given.teacher_logits)
        logprobs = gather_logprobs(student.detach(), given.tokens)
    limit = training.importance_ratio_cap
    weights = truncated_importance_weights(logprobs, given.rollout_logprobs, limit)
    compared = sums_of(
        importance_weight=weights,
        importance_clipped=weights == limit,
        logprob_difference=(logprobs.detach() - given.rollout_logprobs).abs(),
    )
    metrics = compared | metrics
    if is_added("objectives", divergence):
        loss, own = load("objectives", divergence)(logits, given, **objective.options)
        return loss / total_tokens, metrics | {f"{divergence}_{name}": value for name, value in own.items()}
    if objective.support != "sampled":
        # The divergence is exact at each position: that an engine drew the tokens needs no weight.
        return load("objectives", divergence)(student, teacher).sum() / total_tokens, metrics
    target_logprobs = given.teacher_logprobs
    if given.reference_logprobs is not None:
        target_logprobs = extrapolated_logprobs(target_logprobs, given.reference_logprobs, objective.reward_scale)
    advantages = distillation_advantages(target_logprobs, given.rollout_logprobs)
    return policy_gradient_loss(logprobs, advantages, weights, total_tokens), metrics
