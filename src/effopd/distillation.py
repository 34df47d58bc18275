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
from effopd.trainer import Trainer, warmed_up


def generate_rollouts(
    engine: RolloutEngine, prompts: Sequence[Sequence[int]], training: dict[str, Any], seed: int, step: int
) -> Rollouts:
    """The rollouts of a step (from 1): the next prompts of the seed's shuffled epochs, sampled from the engine."""
    count, samples = training["prompts_per_step"], training["samples_per_prompt"]
    order = epoch_order(seed, "training order", len(prompts), (step - 1) * count, count)
    rows = [i for i in order for _ in range(samples)]
    seeds = [seed_of(seed, "rollout", step, position) for position in range(len(rows))]
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

    Returns the step's metrics: `reverse_kl` is the sampled estimate, mean of log pi_student - log pi_teacher in nats
    per token; `importance_*` compare the trainer's log-probs with the engine's.
    """
    device = trainer.model.device
    total, size = rollouts.completion_tokens, training["batch_size"]
    micro_batches = []
    for start, part in enumerate(rollouts.batches(size)):
        batch = PaddedBatch.of(part, pad_id, device)
        teacher = scores.select(range(start * size, start * size + len(part)))
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
    estimate = sum((m.rollout_logprobs - m.teacher_logprobs).double().sum().item() for m in micro_batches) / total
    return {
        "reverse_kl": estimate,
        **facts,
        "lr": lr,
        "importance_weight": sums["weight"] / total,
        "importance_clipped": sums["clipped"] / total,
        "tokens": total,
        "completion_length": total / len(rollouts),
        "finished": sum(rollouts.finished) / len(rollouts),
    }
