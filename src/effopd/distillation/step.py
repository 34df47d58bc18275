"""One step of on-policy distillation: generate, score, update. Pure packaging of the three, whoever calls them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from effopd.common.randomness import epoch_order, seed_of
from effopd.data.batching import passes_of
from effopd.data.rollouts import Rollouts
from effopd.data.sharding import WHOLE, Shard
from effopd.distillation.objective import ScoredBatch, distillation_loss
from effopd.engines.base import RolloutEngine
from effopd.losses.chunked import chunked_loss
from effopd.losses.metrics import Metrics, add_up
from effopd.models.lm_head import Head
from effopd.specs.engines import Sampling
from effopd.specs.segments import HorizonSettings, TrainingSettings
from effopd.teachers.scoring import Scores
from effopd.training.trainer import Trainer, warmed_up


def generate_rollouts(
    engine: RolloutEngine,
    prompts: Sequence[Sequence[int]],
    training: TrainingSettings,
    seed: int,
    step: int,
    shard: Shard = WHOLE,
) -> Rollouts:
    """The rollouts of a step (from 1): the next prompts of the seed's shuffled epochs, sampled from the engine.

    The shards of a step, one after the other, are the whole, bitwise if the engine works in fixed batches: each has
    whole ones.
    """
    count, samples = training.prompts_per_step, training.samples_per_prompt
    order = epoch_order(seed, "training order", len(prompts), (step - 1) * count, count)
    positions = shard.rows(count * samples, training.batch_size)
    rows = [order[position // samples] for position in positions]
    seeds = [seed_of(seed, "rollout", step, position) for position in positions]
    sampling = Sampling(training.temperature, rollout_limit(training.horizon, training.max_new_tokens, step))
    engine.sync_weights()
    rollouts = engine.generate([prompts[i] for i in rows], seeds, sampling)
    rollouts.indices = rows
    return rollouts


def rollout_limit(horizon: HorizonSettings, longest: int, step: int) -> int:
    """The longest rollout of a step (from 1) in tokens: `horizon.tokens`, perhaps growing to `longest`."""
    first = longest if horizon.tokens is None else horizon.tokens
    grown = (longest - first) * (step - 1) // horizon.growth_steps if horizon.growth_steps else 0
    return min(first + grown, longest)


def update_policy(
    trainer: Trainer,
    rollouts: Rollouts,
    scores: Scores,
    training: TrainingSettings,
    step: int,
    pad_id: int,
    teacher_head: Head | None = None,
) -> dict[str, float]:
    """One optimizer step on the objective at the rollouts' tokens (paper section 1; docs/objectives.md).

    Every rank is given the whole step and works on its shard of the fixed batches, in passes of similar length; the
    full vocabulary needs the teacher's head. Returns the step's metrics, means over its tokens: `reverse_kl` is the
    sampled estimate, log pi_student - log pi_teacher in nats; `importance_*` compare the trainer's log-probs with the
    engine's.
    """
    total, size = rollouts.completion_tokens, training.batch_size
    shard, lengths = Shard(trainer.rank, trainer.ranks).rows(len(rollouts), size), rollouts.lengths
    micros = []
    for chosen in passes_of([lengths[row] for row in shard], training.micro_batch or size):
        rows = [shard[position] for position in chosen]
        part, scored = rollouts.select(rows), scores.select(rows)
        micros.append(ScoredBatch.from_rollouts(part, scored, pad_id, trainer.model.device, teacher_head))

    def loss_of(model: Any, micro: ScoredBatch) -> tuple[torch.Tensor, Metrics]:
        return chunked_loss(model, micro.batch, partial(distillation_loss, training, total, micro))

    lr = warmed_up(training.lr, step, training.warmup_steps)
    facts, metrics = trainer.step(micros, loss_of, lr)
    sums = add_up([*(micro.metrics for micro in micros), *metrics])
    means = {name: trainer.sum_over_ranks(value.item()) / total for name, value in sums.items()}
    return {
        "reverse_kl": means.pop("reverse_kl"),
        **facts,
        "lr": lr,
        **means,
        "tokens": total,
        "completion_length": total / len(rollouts),
        "finished": sum(rollouts.finished) / len(rollouts),
    }
