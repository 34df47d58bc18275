"""One step of on-policy distillation: generate, score, update. Pure packaging of the three, whoever calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from effopd.engines.base import RolloutEngine, Sampling
from effopd.losses import (
    distillation_advantages,
    policy_gradient_loss,
    token_logprobs,
    truncated_importance_weights,
)
from effopd.randomness import epoch_order, seed_of
from effopd.rollouts import PaddedBatch, Rollouts
from effopd.scoring import Scores
from effopd.shares import WHOLE, Share
from effopd.trainer import Trainer, warmed_up


def generate_rollouts(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    training: dict[str, Any],
    seed: int,
    step: int,
    share: Share = WHOLE,
) -> Rollouts:
    """The rollouts of a step (from 1): the next prompts of the seed's shuffled epochs, sampled from the engine.

    The shares of a step, one after the other, are bitwise the whole: each has whole fixed batches.
    """
    count, samples = training["prompts_per_step"], training["samples_per_prompt"]
    order = epoch_order(seed, "training order", len(prompts), (step - 1) * count, count)
    positions = share.rows(count * samples, training["batch_size"])
    rows = [order[position // samples] for position in positions]
    seeds = [seed_of(seed, "rollout", step, position) for position in positions]
    sampling = Sampling(training["temperature"], training["max_new_tokens"])
    rollouts = engine.generate([prompts[i] for i in rows], seeds, sampling)
    rollouts.indices = rows
    return rollouts


@dataclass
class _MicroBatch:
    batch: PaddedBatch
    rollout_logprobs: torch.Tensor  # float32 [M]
    teacher_logprobs: torch.Tensor  # float32 [M]


def update_policy(
    trainer: Trainer, rollouts: Rollouts, scores: Scores, training: dict[str, Any], step: int, pad_id: int
) -> dict[str, float]:
    """One optimizer step on the reverse KL at the rollouts' tokens (paper section 1).

    Every rank is given the whole step and works on its share of the fixed batches. Returns the step's metrics:
    `reverse_kl` is the sampled estimate, mean of log pi_student - log pi_teacher in nats per token; `importance_*`
    compare the trainer's log-probs with the engine's.
    """
    device = trainer.model.device
    total, size = rollouts.completion_tokens, training["batch_size"]
    micro_batches = []
    for number in Share(trainer.rank, trainer.ranks).batches(len(rollouts), size):
        rows = range(number * size, min((number + 1) * size, len(rollouts)))
        part, teacher = rollouts.select(rows), scores.select(rows)
        batch = PaddedBatch.of(part, pad_id, device)
        micro_batches.append(_MicroBatch(batch, batch.flatten(part.logprobs), batch.flatten(teacher.logprobs)))
    sums = {"weight": 0.0, "clipped": 0.0}

    def loss_of(model: PreTrainedModel, micro: _MicroBatch) -> torch.Tensor:
        batch = micro.batch
        logits = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[batch.mask]
        logprobs = token_logprobs(logits / training["temperature"], batch.targets[batch.mask])
        weights = truncated_importance_weights(logprobs, micro.rollout_logprobs, training["importance_limit"])
        sums["weight"] += weights.sum().item()
        sums["clipped"] += (weights == training["importance_limit"]).sum().item()
        advantages = distillation_advantages(micro.teacher_logprobs, micro.rollout_logprobs)
        return policy_gradient_loss(logprobs, advantages, weights, total)

    lr = warmed_up(training["lr"], step, training["warmup_steps"])
    facts = trainer.step(micro_batches, loss_of, lr)
    estimate = sum((m.rollout_logprobs - m.teacher_logprobs).double().sum().item() for m in micro_batches)
    return {
        "reverse_kl": trainer.sum_over_ranks(estimate) / total,
        **facts,
        "lr": lr,
        "importance_weight": trainer.sum_over_ranks(sums["weight"]) / total,
        "importance_clipped": trainer.sum_over_ranks(sums["clipped"]) / total,
        "tokens": total,
        "completion_length": total / len(rollouts),
        "finished": sum(rollouts.finished) / len(rollouts),
    }
