"""Real TRL runs on a tiny model, for test_trl.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from effopd.models.models import Weights, weights_of
from tiny_models import make_model

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


class Capture(TrainerCallback):
    """Keeps the weights after each optimizer step, before any later callback changes them."""

    def __init__(self) -> None:
        self.weights: dict[int, Weights] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights[state.global_step] = weights_of(kwargs["model"])


class CaptureAfter(Capture):
    """The same for after it: the Trainer takes callbacks of one class once."""


def arguments(out: Path, steps: int, **settings: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_completion_length": 8,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 3,
        **settings,
    }


def distil(
    out: Path,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    callbacks: list[TrainerCallback],
    steps: int = 4,
    resume: str | None = None,
    **settings: Any,
) -> DistillationTrainer:
    """On-policy distillation of a random student from another random model."""
    torch.manual_seed(0)
    trainer = DistillationTrainer(
        model=make_model(0, len(tokenizer)),
        teacher_model=make_model(1, len(tokenizer)),
        args=DistillationConfig(**arguments(out, steps, **settings)),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer
