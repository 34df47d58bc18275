"""Run by test_trainer_ranks.py on two ranks: trains on this rank's share in several ways, one file each."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from effopd.models.models import save_tensors
from effopd.training.lora import LoraTrainer
from effopd.training.trainer import Trainer, TrainerSettings
from lora_settings import LORA
from tiny_models import make_model
from trainer_data import SETTINGS, data, loss_and_metrics

WAYS = {  # the settings of steps 0 and 1, and of steps 2 and 3, which another trainer does from what was saved
    "zero0": ({}, {}),
    "lora": ({}, {}),
    "zero2then3": ({"zero_stage": 2}, {"zero_stage": 3}),
    "zero3": ({"zero_stage": 3, "gradient_checkpointing": True}, {"zero_stage": 3, "offload_optimizer": True}),
    "bf16zero1then3": ({"zero_stage": 1, "precision": "bfloat16"}, {"zero_stage": 3, "precision": "bfloat16"}),
}


def make_trainer(way: str, seed: int, settings: TrainerSettings) -> Trainer:
    model = make_model(seed)
    return LoraTrainer(model, settings, LORA, seed) if way == "lora" else Trainer(model, settings)


def share(trainer: Trainer, step: int) -> list[torch.Tensor]:
    """Uneven shares: two micro-batches on one rank, one on the other."""
    return [data(step)[:2], data(step)[2:5]] if trainer.rank == 0 else [data(step)[5:]]


def train(folder: Path, way: str) -> None:
    first, then = (replace(SETTINGS, **changes) for changes in WAYS[way])
    trainer = make_trainer(way, 0, first)
    losses = [trainer.step(share(trainer, step), loss_and_metrics, 1e-3)[0]["loss"] for step in (0, 1)]
    weights, moments = trainer.broadcast(trainer.weights()), trainer.broadcast(trainer.optimizer_state())
    trainer = make_trainer(way, 1, then)
    trainer.load_weights(weights)
    trainer.load_optimizer_state(moments)
    losses += [trainer.step(share(trainer, step), loss_and_metrics, 1e-3)[0]["loss"] for step in (2, 3)]
    weights, state = trainer.weights(), trainer.optimizer_state()
    assert bool(weights) == bool(state.moments) == trainer.first
    policy_model = make_model(2).to(
        getattr(torch, then.precision)
    )  # what an engine generates with, whole on every rank
    trainer.copy_weights_into(policy_model)
    copied = {f"policy_model.{name}": parameter.detach() for name, parameter in policy_model.named_parameters()}
    save_tensors(
        folder / f"{way}.rank{trainer.rank}.safetensors", weights | state.moments | copied, {"losses": repr(losses)}
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for way in sys.argv[2:]:
        train(Path(sys.argv[1]), way)
    os._exit(0)
