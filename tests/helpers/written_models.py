"""Tiny models as artifacts on disk."""

from __future__ import annotations

import time

import torch

from effopd.artifacts.manifests import write_manifest
from effopd.models.models import save_model, save_tensors, weights_of
from effopd.tasks.base import build_task
from tiny_models import TASK_SECTION, make_model

TASK = {
    **TASK_SECTION,
    "splits": {"train": 4, "validation": 4, "test": 12},
    "corpus": {**TASK_SECTION["corpus"], "size": 4},
}


def nudged(amount, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = weights_of(make_model(0))
    return {name: w + amount * torch.randn(w.shape, generator=generator) for name, w in weights.items()}


def write_model(folder, weights, checkpoints=()):
    save_model(make_model(0).config, weights, build_task(TASK).make_tokenizer(), folder)
    for step in checkpoints:
        save_tensors(folder / f"checkpoints/step{step}.safetensors", nudged(1e-3 * step, 7))
    paths = [*folder.glob("*.*"), *folder.glob("checkpoints/*")]
    files = {str(path.relative_to(folder)): path for path in paths}
    write_manifest(
        folder / "manifest.json", kind="model", spec={"folder": folder.name}, parents={}, files=files,
        result={"steps": 20}, started=time.time(),
    )  # fmt: skip
    return folder / "manifest.json"
