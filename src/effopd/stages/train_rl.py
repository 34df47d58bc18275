"""The teacher: a model of the workflow after reinforcement learning with verifiable rewards (GRPO)."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from effopd.engines.base import Sampling, build_engine, longest_context
from effopd.extrapolation.schedule import powers_of_two
from effopd.losses import group_advantages, policy_gradient_loss, token_logprobs
from effopd.models import dtype_of, load_model, load_tokenizer, special_ids
from effopd.prompts import load_prompts
from effopd.randomness import epoch_order, seed_of
from effopd.rollouts import PaddedBatch, Rollouts
from effopd.runtime.artifacts import read_manifest
from effopd.stages.model_folder import share_of, train_into_folder
from effopd.tasks.base import build_task
from effopd.trainer import Trainer, warmed_up
from effopd.verification import verify_rollouts


def train_rl(spec: dict[str, Any], prompts: Path, init: Path, out: Path, device: torch.device) -> None:
    """Train the model of the manifest `init` with GRPO and write it, and its checkpoints at powers of two."""
    settings = spec["model"]
    prompts_manifest, init_manifest = read_manifest(prompts, "prompts"), read_manifest(init, "model")
    task = build_task(spec["task"])
    training = load_prompts(prompts_manifest, "train")
    model, tokenizer = load_model(init.parent, device), load_tokenizer(init.parent)
    partitioned = settings["zero_stage"] == 3  # the engine then needs a model of its own
    acting = load_model(init.parent, device, dtype_of(settings["precision"])) if partitioned else model
    group, count = settings["samples_per_prompt"], settings["prompts_per_step"]
    context = longest_context(training.tokens, settings["max_new_tokens"])
    engine = build_engine(settings, acting, tokenizer, batch_size=group * count, context=context)
    _, pad_id = special_ids(tokenizer)
    sampling = Sampling(settings["temperature"], settings["max_new_tokens"])

    def train_step(trainer: Trainer, step: int) -> dict[str, float]:
        order = epoch_order(settings["seed"], "reinforcement order", len(training), (step - 1) * count, count)
        groups = share_of(trainer, list(enumerate(order)))  # whole groups: their mean is the baseline
        rows = [i for _, i in groups for _ in range(group)]
        seeds = [
            seed_of(settings["seed"], "reinforcement rollout", step, position, sample)
            for position, _ in groups
            for sample in range(group)
        ]
        asked = training.select(rows)
        if partitioned:
            trainer.copy_weights_into(acting)
        engine.sync_weights()
        rollouts = engine.generate(asked.tokens, seeds, sampling)
        rewards = torch.tensor(verify_rollouts(task, tokenizer, asked.problems, rollouts)["reward"])
        advantages = group_advantages(rewards, group)
        size = settings.get("micro_batch", len(rollouts))
        batches = [
            _MicroBatch.of(part, part_advantages, pad_id, device)
            for part, part_advantages in zip(rollouts.batches(size), advantages.split(size), strict=True)
        ]
        total = int(trainer.sum_over_ranks(rollouts.completion_tokens))
        lr = warmed_up(settings["lr"], step, settings["warmup_steps"])
        facts = trainer.step(batches, lambda m, b: _loss(m, b, total, settings["temperature"]), lr)
        reward = trainer.sum_over_ranks(rewards.sum().item()) / (count * group)
        return {**facts, "reward": reward, "completion_length": total / (count * group)}

    with closing(engine):
        train_into_folder(
            out,
            spec=spec,
            parents={"prompts": prompts_manifest.fingerprint, "init": init_manifest.fingerprint},
            model=model,
            tokenizer=tokenizer,
            train_step=train_step,
            checkpoints=powers_of_two(settings["steps"]),
            what="reinforcement learning step",
            shown=("reward",),
        )


@dataclass
class _MicroBatch:
    batch: PaddedBatch
    advantages: torch.Tensor  # float32 [M], of the batch's M completion tokens

    @staticmethod
    def of(rollouts: Rollouts, advantages: torch.Tensor, pad_id: int, device: torch.device) -> _MicroBatch:
        """N rollouts and their advantages float32 [N]."""
        lengths = torch.tensor([len(c) for c in rollouts.completions])
        of_tokens = advantages.repeat_interleave(lengths).to(device)
        return _MicroBatch(PaddedBatch.of(rollouts, pad_id, device), of_tokens)


def _loss(model: PreTrainedModel, micro: _MicroBatch, total_tokens: int, temperature: float) -> torch.Tensor:
    """GRPO with one update per batch: the ratio to the sampling policy is 1 and its clip inert.

    The policy is the one sampled from, at `temperature`.
    """
    batch, advantages = micro.batch, micro.advantages
    logits = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[batch.mask]
    logprobs = token_logprobs(logits / temperature, batch.targets[batch.mask])
    return policy_gradient_loss(logprobs, advantages, torch.ones_like(advantages), total_tokens)
