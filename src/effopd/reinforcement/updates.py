"""The optimizer steps that a batch of rollouts is good for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from effopd.data.batching import passes_of
from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.losses.chunked import chunked_loss
from effopd.losses.divergences import policy_gradient_loss, token_logprobs
from effopd.losses.metrics import Metrics, add_up, sums_of
from effopd.models.lm_head import completion_logits, position_chunks, vocabulary_of
from effopd.reinforcement.draws import Groups
from effopd.reinforcement.losses import (
    clipped_surrogate,
    generalised_advantages,
    group_advantages,
    kl_estimate,
    overlong_penalty,
    token_rewards,
    value_loss,
)
from effopd.reinforcement.value_head import values_of, zero_of_logits_and_values
from effopd.specs.models import RLSettings
from effopd.training.trainer import Trainer, zero_of_logits

SMALLEST_DEVIATION = 1e-8


@dataclass
class RewardedBatch:
    """Rollouts of one forward and backward pass, of M completion tokens; each tensor float32 [M]."""

    batch: PaddedBatch
    lengths: torch.Tensor  # int64 [N], on the CPU
    rollout_logprobs: torch.Tensor  # as the engine sampled the tokens
    old_logprobs: torch.Tensor  # of the policy that was sampled from, as the trainer has them
    reference_logprobs: torch.Tensor | None = None  # of the model that training started from
    advantages: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    old_values: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def metrics(self) -> Metrics:
        """What was known before the first update: sums over tokens."""
        sums = sums_of(
            entropy=-self.rollout_logprobs.double()
        )  # its mean estimates it: the tokens are the policy's own
        if self.reference_logprobs is not None:
            sums |= sums_of(kl=kl_estimate(self.old_logprobs, self.reference_logprobs).double())
        return sums


class Updates:
    """Trains a policy on groups of rollouts, as a model's `kind` says."""

    def __init__(
        self,
        settings: RLSettings,
        policy_model: PreTrainedModel,
        reference: PreTrainedModel | None,
        pad_id: int,
        device: torch.device,
    ) -> None:
        """`policy_model` has the weights that rollouts are sampled from; `reference` is what training started from."""
        self.settings, self.policy_model, self.reference = settings, policy_model, reference
        self.pad_id, self.device = pad_id, device
        self.actor_critic = settings.actor_critic
        self.single = settings.epochs * settings.minibatches == 1

    def __call__(self, trainer: Trainer, minibatches: Sequence[Groups], lr: float) -> dict[str, float]:
        """Update once for each minibatch and epoch, and say how that went.

        `loss` and `gradient_norm` are means over updates; the others, all ranks together, over the tokens of the step
        (`kl`, `entropy`: before the first update) or of all updates (`clip_share`, `value_loss`).
        """
        prepared = [self._prepare(groups) for groups in minibatches]
        micros = list(chain.from_iterable(prepared))
        explained = self._whiten(trainer, micros) if self.actor_critic else {}
        totals = [int(trainer.sum_over_ranks(sum(micro.tokens for micro in part))) for part in prepared]
        idle_loss = zero_of_logits_and_values if self.actor_critic else zero_of_logits
        made = [
            trainer.step(part, partial(self._loss, total=total), lr, idle_loss)
            for _ in range(self.settings.epochs)
            for part, total in zip(prepared, totals, strict=True)
        ]
        facts, losses = [one for one, _ in made], [two for _, two in made]
        sums = add_up([self._zeros(), *(micro.metrics for micro in micros), *chain.from_iterable(losses)])
        trained = self.settings.epochs * sum(totals)
        tokens = {"kl": sum(totals), "entropy": sum(totals), "clip_share": trained, "value_loss": trained}
        return {
            **{name: sum(one[name] for one in facts) / len(facts) for name in ("loss", "gradient_norm")},
            **{name: trainer.sum_over_ranks(value.item()) / tokens[name] for name, value in sums.items()},
            **explained,
            "trained_tokens": trained,
        }

    def _zeros(self) -> Metrics:
        """Of all metrics, the same on every rank, though one may have no groups."""
        there = {
            "kl": self.reference is not None,
            "entropy": True,
            "clip_share": not self.single,
            "value_loss": self.actor_critic,
        }
        zero = torch.zeros((), dtype=torch.float64, device=self.device)
        return {name: zero for name, counts in there.items() if counts}

    def _prepare(self, groups: Groups) -> list[RewardedBatch]:
        """The micro-batches of a minibatch, with all that does not change while it is trained on."""
        rollouts, size = groups.rollouts, self.settings.micro_batch or max(1, len(groups.rollouts))
        parts = passes_of(rollouts.lengths, size)
        micros = [self._micro_batch(rollouts.select(rows)) for rows in parts]
        if self.actor_critic:
            for micro, rows in zip(micros, parts, strict=True):
                self._estimate_advantages(micro, groups.rewards[rows])
        elif micros:
            advantages = group_advantages(self._shaped(groups), groups.size, self.settings.scale_rewards)
            for micro, rows in zip(micros, parts, strict=True):
                micro.advantages = advantages[rows].repeat_interleave(micro.lengths).to(self.device)
        return micros

    def _shaped(self, groups: Groups) -> torch.Tensor:
        """Rewards less DAPO's penalty of long completions: float32 [N]."""
        if self.settings.overlong_buffer is None:
            return groups.rewards
        lengths = torch.tensor([len(completion) for completion in groups.rollouts.completions])
        penalty = overlong_penalty(lengths, self.settings.max_new_tokens, self.settings.overlong_buffer)
        return groups.rewards + self.settings.overlong_penalty * penalty

    def _micro_batch(self, rollouts: Rollouts) -> RewardedBatch:
        batch = PaddedBatch.of(rollouts, self.pad_id, self.device)
        logprobs, lengths = batch.flatten(rollouts.logprobs), [len(completion) for completion in rollouts.completions]
        micro = RewardedBatch(batch, torch.tensor(lengths), logprobs, old_logprobs=logprobs)
        if self.actor_critic:
            with values_of(self.policy_model) as values:
                micro.old_logprobs = self._logprobs(self.policy_model, batch)
            micro.old_values = values[0][batch.mask]
        elif not self.single:  # an engine of its own may have other log-probs than the trainer
            micro.old_logprobs = self._logprobs(self.policy_model, batch)
        if self.reference is not None:
            micro.reference_logprobs = self._logprobs(self.reference, batch)
        return micro

    @torch.no_grad()
    def _logprobs(self, model: PreTrainedModel, batch: PaddedBatch) -> torch.Tensor:
        logits, targets = completion_logits(model.eval(), batch), batch.targets[batch.mask]
        chunks = position_chunks(len(targets), vocabulary_of(model))
        return torch.cat([token_logprobs(logits(c) / self.settings.temperature, targets[c]) for c in chunks])

    def _estimate_advantages(self, micro: RewardedBatch, rewards: torch.Tensor) -> None:
        """PPO's: the verifier's reward at the last token, less a penalty for leaving the reference at each."""
        assert micro.old_values is not None
        values = micro.old_values.cpu()
        penalties = torch.zeros(micro.tokens)
        if self.settings.kl_coefficient:
            assert micro.reference_logprobs is not None
            penalties = self.settings.kl_coefficient * (micro.old_logprobs - micro.reference_logprobs).cpu()
        of_tokens = token_rewards(rewards, micro.lengths, penalties)
        decay, discount = self.settings.gae_lambda, self.settings.discount
        advantages = generalised_advantages(of_tokens, values, micro.lengths, discount, decay)
        micro.advantages, micro.returns = advantages.to(self.device), (advantages + values).to(self.device)

    def _whiten(self, trainer: Trainer, micros: Sequence[RewardedBatch]) -> dict[str, float]:
        """Give the step's advantages mean 0 and deviation 1. Returns how much the values explained of the returns."""
        advantages, returns = (
            np.concatenate([getattr(micro, name).cpu().numpy() for micro in micros]).astype(np.float64)
            for name in ("advantages", "returns")
        )
        mean, variance = _moments(trainer, advantages)
        for micro in micros:
            micro.advantages = (micro.advantages - mean) / (variance**0.5 + SMALLEST_DEVIATION)
        _, of_returns = _moments(trainer, returns)
        return {"explained_variance": 1 - variance / of_returns if of_returns else 0.0}  # the errors are the advantages

    def _loss(self, model: Any, micro: RewardedBatch, total: int) -> tuple[torch.Tensor, Metrics]:
        """The micro-batch's share of a minibatch's loss, a mean over `total` tokens; and metrics of its tokens."""
        targets = micro.batch.targets[micro.batch.mask]

        def policy_loss(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, Metrics]:
            # the policy is the one sampled from, at its temperature
            logprobs = token_logprobs(logits / self.settings.temperature, targets[rows])
            advantages, metrics = micro.advantages[rows], Metrics()
            if self.single:  # the ratio is 1 and the clip inert: the same gradient
                loss = policy_gradient_loss(logprobs, advantages, torch.ones_like(advantages), total)
            else:
                old, low, high = micro.old_logprobs[rows], self.settings.clip_low, self.settings.clip_high
                terms, held = clipped_surrogate(logprobs, old, advantages, low, high)
                loss, metrics = terms.sum() / total, sums_of(clip_share=held)
            if self.settings.kl_coefficient and not self.actor_critic:
                assert micro.reference_logprobs is not None
                divergence = kl_estimate(logprobs, micro.reference_logprobs[rows])
                loss = loss + self.settings.kl_coefficient * divergence.sum() / total
            return loss, metrics

        if not self.actor_critic:
            return chunked_loss(model, micro.batch, policy_loss)
        assert micro.old_values is not None
        assert micro.returns is not None
        with values_of(model) as values:
            loss, metrics = chunked_loss(model, micro.batch, policy_loss)
        predicted = values[0][micro.batch.mask]
        errors = value_loss(predicted, micro.old_values, micro.returns, self.settings.value_clip)
        metrics |= sums_of(value_loss=errors.double())
        return loss + self.settings.value_coefficient * errors.sum() / total, metrics


def _moments(trainer: Trainer, values: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the values of all ranks."""
    count, total = trainer.sum_over_ranks(len(values)), trainer.sum_over_ranks(float(values.sum()))
    mean = total / count
    return mean, trainer.sum_over_ranks(float(np.square(values - mean).sum())) / count
