"""One optimizer step at a time, with DeepSpeed behind it."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from effopd.models import Weights
from effopd.runtime.errors import DivergenceError

MOMENTS = ("exp_avg", "exp_avg_sq")
Micro = TypeVar("Micro")
Shared = TypeVar("Shared")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and the clip of the global gradient norm (0 turns clipping off)."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float
    gradient_clipping: float

    @staticmethod
    def of(section: Mapping[str, Any]) -> OptimizerSettings:
        """The optimizer that a `models` or `training` section of the configuration describes."""
        first, second = section["betas"]
        return OptimizerSettings(section["lr"], (first, second), section["weight_decay"], section["gradient_clipping"])


@dataclass
class OptimizerState:
    """AdamW's memory, independent of how it was partitioned: moments named `exp_avg.<parameter>` and so on."""

    step: int
    moments: Weights


def warmed_up(lr: float, step: int, warmup_steps: int) -> float:
    """The learning rate of a step (from 1): linear over `warmup_steps`, then constant."""
    return lr * min(1.0, step / max(1, warmup_steps))


class Trainer:
    """Trains a model's parameters in place with AdamW under DeepSpeed.

    The float32 parameters are the master weights: they are what is saved and extrapolated. Runs alone, or as one of
    the ranks that `torch.distributed.run` starts; a rank passes its share of the micro-batches of each step.
    """

    def __init__(self, model: PreTrainedModel, settings: OptimizerSettings) -> None:
        deepspeed = import_deepspeed(on_cpu=model.device.type == "cpu")
        _join_process_group(model.device)
        self.model, self.settings = model, settings
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": settings.gradient_clipping,
                "zero_optimization": {"stage": 0},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": None,
            },
        )
        self.optimizer_steps = 0
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

    @property
    def first(self) -> bool:
        """Whether this is the rank that reads caches and writes artifacts."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()

    def broadcast(self, value: Shared) -> Shared:
        """The first rank's value, on every rank."""
        if self.ranks == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Shared) -> list[Shared]:
        """Every rank's value, in order, on every rank."""
        if self.ranks == 1:
            return [value]
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value)
        return values

    def sum_over_ranks(self, value: float) -> float:
        """The sum of a number over all ranks, in float64."""
        if self.ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.model.device)
        dist.all_reduce(total)
        return float(total.item())

    def step(
        self, micro_batches: Sequence[Micro], loss_of: Callable[[PreTrainedModel, Micro], torch.Tensor], lr: float
    ) -> dict[str, float]:
        """Forward, loss and backward of every micro-batch, then one update.

        `loss_of(model, micro_batch)` returns a scalar that is already divided by the size of the whole batch, so that
        the losses of the micro-batches (and ranks) add up. Returns the summed `loss` and the `gradient_norm` before
        clipping. Raises DivergenceError where either is not finite, before anything is changed.
        """
        self.engine.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        total = torch.zeros((), device=self.model.device)
        for position, micro_batch in enumerate(micro_batches, start=1):
            self.engine.set_gradient_accumulation_boundary(position == len(micro_batches))
            loss = loss_of(self.engine, micro_batch)
            total += loss.detach()
            # DeepSpeed averages gradients over the ranks; the losses are shares of one sum.
            self.engine.backward(loss * self.ranks, scale_wrt_gas=False)
        if not math.isfinite(value := self.sum_over_ranks(total.item())):
            raise DivergenceError(
                f"the loss of optimizer step {self.optimizer_steps + 1} is {value}. Lower `lr` (now {lr:g}) or tighten "
                f"`gradient_clipping` (now {self.settings.gradient_clipping:g}); earlier steps are kept."
            )
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]).item()
        if not math.isfinite(norm):
            raise DivergenceError(
                f"the gradient of optimizer step {self.optimizer_steps + 1} has norm {norm}. Lower `lr` (now {lr:g}); "
                "earlier steps are kept."
            )
        self.engine.step()
        self.optimizer_steps += 1
        return {"loss": value, "gradient_norm": norm}

    def optimizer_state(self) -> OptimizerState:
        """A copy of AdamW's moments, on the CPU."""
        moments = {
            f"{moment}.{name}": self.optimizer.state[parameter][moment].detach().to("cpu", copy=True)
            for name, parameter in self.model.named_parameters()
            for moment in MOMENTS
        }
        return OptimizerState(self.optimizer_steps, moments)

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Continue from saved moments; the learning rate is given at each step."""
        self.optimizer_steps = state.step
        for name, parameter in self.model.named_parameters():
            entry = self.optimizer.state[parameter]
            entry["step"] = torch.tensor(float(state.step))
            for moment in MOMENTS:
                entry[moment] = state.moments[f"{moment}.{name}"].to(parameter.device, copy=True)


def import_deepspeed(on_cpu: bool) -> ModuleType:
    """DeepSpeed, told which accelerator to use and kept from filling the log with its start-up notes."""
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if on_cpu:  # gloo serves; else the first job of a machine would compile a C++ extension of its own
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _join_process_group(device: torch.device) -> None:
    """Join the ranks that the launcher announced in the environment, or be the only one (which needs no port)."""
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(backend)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
