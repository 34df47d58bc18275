"""One optimizer step at a time, with DeepSpeed behind it."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from effopd.common.errors import DivergenceError
from effopd.losses.metrics import Metrics
from effopd.models.models import Weights, weights_in
from effopd.specs.updates import UpdateSettings
from effopd.training.deepspeed_compat import import_deepspeed, linear_map
from effopd.training.master_weights import Masters

Micro = TypeVar("Micro")  # a micro-batch
LossOfMicroBatch = Callable[[PreTrainedModel, Micro], tuple[torch.Tensor, Metrics]]
IdleLoss = Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]  # of [1, 1] token ids
Shared = TypeVar("Shared")
Item = TypeVar("Item")


@dataclass(frozen=True)
class TrainerSettings:
    """AdamW, the clip of the global gradient norm (0 turns clipping off), and how DeepSpeed holds it all."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float
    gradient_clipping: float
    precision: str = "float32"  # of forward and backward; master weights and moments are float32 in any case
    zero_stage: int = 0  # what the ranks partition: 1 moments and masters, 2 gradients too, 3 the model too
    gradient_checkpointing: bool = False
    offload_optimizer: bool = False

    @staticmethod
    def of(settings: UpdateSettings) -> TrainerSettings:
        """What a `models` or `training` section of the configuration describes."""
        return TrainerSettings(
            settings.lr,
            settings.betas,
            settings.weight_decay,
            settings.gradient_clipping,
            settings.precision,
            settings.zero_stage,
            settings.gradient_checkpointing,
            settings.offload_optimizer,
        )

    @property
    def reshapes(self) -> bool:
        """Whether DeepSpeed rounds the parameters of the model that it is given, or takes them apart."""
        return self.precision != "float32" or self.zero_stage == 3

    def deepspeed_config(self) -> dict[str, Any]:
        """DeepSpeed's own configuration."""
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.gradient_clipping,
            "zero_optimization": {"stage": self.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": None,
        }
        if self.precision == "bfloat16":  # gradients are added up, over micro-batches and ranks, in float32
            config |= {
                "bf16": {"enabled": True},
                "data_types": {"grad_accum_dtype": "fp32"},
                "communication_data_type": "fp32",
            }
        if self.offload_optimizer:
            config["zero_optimization"]["offload_optimizer"] = {
                "device": "cpu",
                "pin_memory": torch.cuda.is_available(),
            }
            config["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW: no extension to compile
        return config


@dataclass
class OptimizerState:
    """AdamW's memory, independent of how it was partitioned: moments named `exp_avg.<parameter>` and so on.

    With LoRA the parameters are the adapters' factors, which go with it.
    """

    step: int
    moments: Weights
    factors: Weights = field(default_factory=dict)

    def tensors(self) -> Weights:
        """All tensors in one dictionary, the factors' names behind `factors.`."""
        return self.moments | {f"factors.{name}": tensor for name, tensor in self.factors.items()}

    @staticmethod
    def from_tensors(step: int, tensors: Weights) -> OptimizerState:
        """The state whose `tensors` these are."""
        factors = {n.removeprefix("factors."): t for n, t in tensors.items() if n.startswith("factors.")}
        return OptimizerState(step, {n: t for n, t in tensors.items() if not n.startswith("factors.")}, factors)


def warmed_up(lr: float, step: int, warmup_steps: int) -> float:
    """The learning rate of a step (from 1): linear over `warmup_steps`, then constant."""
    return lr * min(1.0, step / max(1, warmup_steps))


def zero_of_logits(model: PreTrainedModel, token: torch.Tensor) -> torch.Tensor:
    """A loss that changes nothing: [1, 1] token ids -> 0, with every parameter of a language model in its graph."""
    loss: torch.Tensor = model(input_ids=token, use_cache=False).logits.float().sum() * 0.0
    return loss


class Trainer:
    """Trains a model's parameters with AdamW under DeepSpeed.

    The float32 master weights are what is saved and extrapolated. Runs alone, or as one of the ranks that
    `torch.distributed.run` starts; a rank passes its shard of the micro-batches of each step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: TrainerSettings,
        device: torch.device | None = None,
        trained: torch.nn.Module | None = None,
    ) -> None:
        """Train `model` on `device` (default: where it is), to which DeepSpeed moves it.

        `trained` is a module that computes what the model does and has other parameters to train (lora.py).
        """
        device = device or model.device
        deepspeed = import_deepspeed(on_cpu=device.type == "cpu")
        _join_process_group(device)
        self.model, self.settings = model, settings
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        initial = weights_in(model) if settings.precision != "float32" else None
        trained = model if trained is None else trained
        adam = torch.optim.AdamW(
            trained.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        # It prints how much memory it takes, and with ZeRO 3 it changes torch's linear map.
        with contextlib.redirect_stdout(sys.stderr), linear_map(torch.nn.functional.linear):
            self.engine, self.optimizer, _, _ = deepspeed.initialize(
                model=trained, optimizer=adam, config=settings.deepspeed_config()
            )
            self._linear = torch.nn.functional.linear
        self.masters = Masters(self.engine, adam, settings.zero_stage)
        if initial is not None:  # DeepSpeed has made its masters from the rounded parameters
            self.masters.load_weights(initial)
        self.optimizer_steps = 0
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

    @property
    def first(self) -> bool:
        """Whether this is the rank that reads caches and writes artifacts."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every rank is here."""
        dist.barrier()

    def shard_of(self, items: Sequence[Item]) -> list[Item]:
        """This rank's shard of a batch: every n-th item. With one rank, all."""
        return list(items[self.rank :: self.ranks])

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
        self,
        micro_batches: Sequence[Micro],
        loss_of: LossOfMicroBatch[Micro],
        lr: float,
        idle_loss: IdleLoss = zero_of_logits,
    ) -> tuple[dict[str, float], list[Metrics]]:
        """Forward, loss and backward of every micro-batch, then one update.

        `loss_of(model, micro_batch)` returns metrics and a scalar that is already divided by the size of the whole
        batch, so that the losses of the micro-batches (and ranks) add up. A rank with fewer micro-batches than another
        takes `idle_loss(model, token)` if all have to keep step (ZeRO 2 and 3): 0, by way of every parameter that is
        trained. Returns the summed `loss` with the `gradient_norm` before clipping, and the metrics of each of this
        rank's micro-batches. Raises DivergenceError if loss or norm is not finite, before anything is changed.
        """
        self.engine.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with linear_map(self._linear):
            loss, metrics = self._add_up_gradients(micro_batches, loss_of, idle_loss)
        value = self.sum_over_ranks(loss)
        if not math.isfinite(value):
            raise DivergenceError(
                f"the loss of optimizer step {self.optimizer_steps + 1} is {value}. Lower `lr` (now {lr:g}) or tighten "
                f"`gradient_clipping` (now {self.settings.gradient_clipping:g}); earlier steps are kept."
            )
        if self.settings.zero_stage == 0:
            gradients = [p.grad for p in self.masters.parameters.values() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
            if math.isfinite(norm):
                self.engine.step()
        else:  # which changes nothing where the norm is not finite
            self.engine.step()
            norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise DivergenceError(
                f"the gradient of optimizer step {self.optimizer_steps + 1} has norm {norm}. Lower `lr` (now {lr:g}); "
                "earlier steps are kept."
            )
        self.optimizer_steps += 1
        return {"loss": value, "gradient_norm": norm}, metrics

    def _add_up_gradients(
        self, micro_batches: Sequence[Micro], loss_of: LossOfMicroBatch[Micro], idle_loss: IdleLoss
    ) -> tuple[float, list[Metrics]]:
        """Forward and backward passes of a step on this rank; returns the sum of its losses, and their metrics."""
        total = torch.zeros((), device=self.engine.device)
        metrics: list[Metrics] = []
        passes = max(1, len(micro_batches))
        if self.settings.zero_stage >= 2:
            passes = max(self.gather(passes))
        for position in range(passes):
            self.engine.set_gradient_accumulation_boundary(position + 1 == passes)
            if position < len(micro_batches):
                loss, sums = loss_of(self.engine, micro_batches[position])
                total += loss.detach()
                metrics.append(sums)
            else:
                loss = idle_loss(self.engine, torch.zeros((1, 1), dtype=torch.int64, device=self.engine.device))
            # DeepSpeed averages gradients over the ranks; the losses are shares of one sum.
            self.engine.backward(loss * self.ranks, scale_wrt_gas=False)
        return float(total.item()), metrics

    def weights(self, everywhere: bool = False, borrowed: bool = False) -> Weights:
        """A copy of the master weights on the CPU, on the first rank or `everywhere`; nothing on the others.

        Where they need not last, `borrowed` saves memory: what lies on the CPU in one piece is then no copy, and to be
        used before the next step. For all ranks together.
        """
        return self.masters.weights(keep=self.first or everywhere, borrowed=borrowed)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the master weights. Every rank is given all of them."""
        self.masters.load_weights(weights)

    def copy_weights_into(self, model: torch.nn.Module) -> None:
        """Give a whole model on every rank the current weights, rounded as its parameters are."""
        self.masters.copy_into(model)

    def optimizer_state(self, borrowed: bool = False) -> OptimizerState:
        """A copy of AdamW's memory on the CPU, on the first rank; no moments on the others. For all ranks together.

        `borrowed` as for the weights.
        """
        return OptimizerState(self.optimizer_steps, self.masters.moments(keep=self.first, borrowed=borrowed))

    def load_optimizer_state(self, state: OptimizerState) -> None:
        """Continue from saved moments; the learning rate is given at each step. Every rank is given all of them."""
        self.optimizer_steps = state.step
        self.masters.load_moments(state.step, state.moments)

    def rescale_optimizer_state(self, moments: str, coefficient: float) -> None:
        """What becomes of AdamW's memory when the weights jump by `coefficient` times the last update.

        "kept": nothing (paper section 2); "reset": it starts anew; "scaled": past gradients weigh 1 / (1 + |c|) of what
        they did, in both moments, so that new ones lead.
        """
        if moments == "reset":
            self.optimizer_steps = 0
            self.masters.scale_gradients(0.0, step=0)
        elif moments == "scaled":
            self.masters.scale_gradients(1 / (1 + abs(coefficient)), step=self.optimizer_steps)


def _join_process_group(device: torch.device) -> None:
    """Join the ranks that the launcher announced in the environment, or be the only one (which needs no port)."""
    if dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group(backend)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
