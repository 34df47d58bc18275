"""A model of the workflow after reinforcement learning with verifiable rewards: GRPO, DAPO or PPO (docs/rl.md)."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from transformers import PreTrainedModel

from effopd.artifacts.manifests import read_manifest
from effopd.data.prompts import load_prompts
from effopd.engines.base import build_engine, longest_context
from effopd.extrapolation.schedule import powers_of_two
from effopd.models.lm_head import restricted
from effopd.models.models import dtype_of, load_model, load_tokenizer, special_ids
from effopd.reinforcement.draws import Source, Validation, draw_minibatches
from effopd.reinforcement.updates import Updates
from effopd.reinforcement.value_head import PARAMETERS, attach_value_head
from effopd.specs.models import TrainRL
from effopd.tasks.base import build_task
from effopd.training.early_stopping import EarlyStopping
from effopd.training.model_folder import train_into_folder
from effopd.training.trainer import Trainer, warmed_up


def train_rl(spec: TrainRL, prompts: Path, init: Path, out: Path, device: torch.device) -> None:
    """Train the model of the manifest `init` as `kind` says and write it, and its checkpoints at powers of two."""
    settings = spec.model
    prompts_manifest, init_manifest = read_manifest(prompts, "prompts"), read_manifest(init, "model")
    task = build_task(spec.task)
    training = load_prompts(prompts_manifest, "train")
    tokenizer = load_tokenizer(init.parent)

    def load(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return restricted(load_model(init.parent, device, dtype), tokenizer)

    model = load()
    dtype = dtype_of(settings.precision)
    partitioned = settings.zero_stage == 3  # the engine then needs a model of its own
    policy_model = load(dtype) if partitioned else model
    compared = settings.measure_kl or settings.kl_coefficient
    reference = load(dtype) if compared else None
    if settings.actor_critic:
        for one in {id(model): model, id(policy_model): policy_model}.values():
            attach_value_head(one, settings.value_scale)
    batch_size = settings.samples_per_prompt * settings.prompts_per_step
    chosen = settings.early_stopping
    validation = load_prompts(prompts_manifest, "validation") if chosen else training
    longest = settings.max_new_tokens
    context = max(longest_context(prompts.tokens, longest) for prompts in (training, validation))
    engine = build_engine(spec.engine, policy_model, tokenizer, batch_size=batch_size, context=context)
    source = Source(settings, training, task, tokenizer, engine)
    updates = Updates(settings, policy_model, reference, special_ids(tokenizer)[1], device)

    def hand_over(trainer: Trainer) -> None:
        if partitioned:
            trainer.copy_weights_into(policy_model)
        engine.sync_weights()

    def train_step(trainer: Trainer, step: int) -> dict[str, float]:
        hand_over(trainer)
        minibatches, drawn = draw_minibatches(trainer, source, step)
        lr = warmed_up(settings.lr, step, settings.warmup_steps)
        return {**drawn, **updates(trainer, minibatches, lr)}

    stopping = None
    if chosen:
        asked = Validation(source, validation, chosen.problems)

        def evaluate(trainer: Trainer) -> float:
            hand_over(trainer)
            return asked.accuracy(trainer)

        stopping = EarlyStopping(chosen.every, chosen.patience, settings.steps, evaluate)

    with closing(engine):
        train_into_folder(
            out,
            spec=spec.content,
            settings=settings,
            parents={"prompts": prompts_manifest.fingerprint, "init": init_manifest.fingerprint},
            model=model,
            tokenizer=tokenizer,
            train_step=train_step,
            checkpoints=powers_of_two(settings.steps),
            what="reinforcement learning step",
            shown=("reward",),
            aside=PARAMETERS if settings.actor_critic else (),
            stopping=stopping,
        )
