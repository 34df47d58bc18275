"""A model of the workflow after supervised fine-tuning on worked responses or on samples (docs/sft.md)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from effopd.artifacts.manifests import read_manifest
from effopd.common.errors import ArtifactError, ConfigError
from effopd.common.progress import say
from effopd.common.randomness import epoch_order
from effopd.common.registry import load
from effopd.data.batching import passes_of
from effopd.data.prompts import data_of
from effopd.data.responses import chosen_samples, examples_of, prompts_by_row, worked_responses
from effopd.data.rollouts import PaddedBatch
from effopd.extrapolation.schedule import powers_of_two
from effopd.losses.chunked import chunked_loss
from effopd.losses.divergences import negative_log_likelihood, token_logprobs
from effopd.losses.metrics import Metrics
from effopd.models.lm_head import restricted
from effopd.models.models import load_model, load_tokenizer, special_ids
from effopd.specs.models import TrainSFT
from effopd.training.decay import decayed
from effopd.training.model_folder import train_into_folder
from effopd.training.trainer import Trainer, TrainerSettings, warmed_up


def train_sft(spec: TrainSFT, prompts: Path, init: Path, samples: Path | None, out: Path, device: torch.device) -> None:
    """Train the model of the manifest `init` to give responses and write it, and its checkpoints at powers of two.

    The responses are those of the data that `prompts` were made from, or those of the manifest `samples`. Raises
    UserError if none is left to learn.
    """
    settings = spec.model
    lora, seed, steps, size = settings.lora, settings.seed, settings.steps, settings.batch_size
    prompts_manifest, init_manifest = read_manifest(prompts, "prompts"), read_manifest(init, "model")
    parents = {"prompts": prompts_manifest.fingerprint, "init": init_manifest.fingerprint}
    tokenizer = load_tokenizer(init.parent)
    eos_id, pad_id = special_ids(tokenizer)
    if settings.sampling is not None:
        if samples is None:
            raise ArtifactError("there are no samples to learn: the option --samples names their manifest.")
        sampled = read_manifest(samples, "samples")
        parents["samples"] = sampled.fingerprint
        responses = chosen_samples(sampled, settings.sampling.keep, settings.sampling.per_problem)
    else:
        responses = worked_responses(data_of(prompts_manifest))
    examples, left_out = examples_of(
        tokenizer, prompts_by_row(prompts_manifest), responses, eos_id, settings.max_tokens
    )
    model = restricted(load_model(init.parent, device), tokenizer)
    _check_positions(model, max(examples.lengths))

    def trainer_of(model: PreTrainedModel, trainer_settings: TrainerSettings) -> Trainer:
        if lora is None:
            return Trainer(model, trainer_settings)
        trainer: Trainer = load("parts", "lora")(model, trainer_settings, lora, seed, device)
        return trainer

    def train_step(trainer: Trainer, step: int) -> dict[str, float]:
        rows = epoch_order(seed, "fine-tuning order", len(examples), (step - 1) * size, size)
        total = sum(len(examples.completions[row]) for row in rows)
        shard = examples.select(trainer.shard_of(rows))
        passes = passes_of(shard.lengths, settings.micro_batch or size)
        batches = [PaddedBatch.of(shard.select(chosen), pad_id, device) for chosen in passes]
        lr = warmed_up(settings.lr, step, settings.warmup_steps) * decayed(settings.decay, step, steps)
        facts, _ = trainer.step(batches, partial(response_loss, total=total), lr)
        return {**facts, "lr": lr, "tokens": total}

    facts = {"examples": len(examples), "problems": len(set(examples.indices)), "left_out": left_out}
    counts = [f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items() if count]
    say(f"{len(examples)} responses to {facts['problems']} problems" + (f"; {', '.join(counts)}" if counts else ""))
    train_into_folder(
        out,
        spec=spec.content,
        settings=settings,
        parents=parents,
        model=model,
        tokenizer=tokenizer,
        train_step=train_step,
        checkpoints=powers_of_two(steps),
        what="fine-tuning step",
        shown=("loss",),
        trainer_of=trainer_of,
        facts=facts,
    )


def response_loss(model: Any, batch: PaddedBatch, total: int) -> tuple[torch.Tensor, Metrics]:
    """The batch's share of the mean negative log-likelihood of `total` response tokens, prompts left out."""
    targets = batch.targets[batch.mask]

    def loss_of(logits: torch.Tensor, rows: slice) -> tuple[torch.Tensor, Metrics]:
        return negative_log_likelihood(token_logprobs(logits, targets[rows]), total), Metrics()

    return chunked_loss(model, batch, loss_of)


def _check_positions(model: PreTrainedModel, longest: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"config: prompts with responses of up to {longest} tokens do not fit the {limit} that the model sees. "
            "Lower `max_tokens` of the model."
        )
