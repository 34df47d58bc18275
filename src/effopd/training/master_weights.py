"""The float32 master weights and AdamW's moments of a model in training, by parameter, however DeepSpeed parts them.

Without DeepSpeed and with ZeRO 0 the model's parameters are the masters. From ZeRO 1 on each rank holds a flat part of
them, from which the model's own parameters, in the precision of computation, are rounded after each step; ZeRO 3
partitions those too. All functions are for all ranks together.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from effopd.models.models import Weights, check_weights
from effopd.training.deepspeed_compat import flat_masters, has_own_master, in_zero3, write_kept

MOMENTS = ("exp_avg", "exp_avg_sq")


def shape_of(parameter: Any) -> torch.Size:
    """The shape of a parameter, of which ZeRO 3 may hold nothing at the moment."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def read_masters(parameters: Iterable[tuple[str, torch.nn.Parameter]], keep: bool) -> Weights:
    """Copies of the master weights on the CPU, float32, by name, where `keep`; an empty dictionary elsewhere."""

    def read(parameter: torch.nn.Parameter) -> torch.Tensor:
        if not has_own_master(parameter):
            return parameter.detach()
        master: torch.Tensor = _utils().safe_get_full_fp32_param(parameter)
        return master

    return _copies(((name, read(parameter)) for name, parameter in parameters), keep)


@torch.no_grad()
def write_master(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Set a parameter's master, and the parameter itself with it. Every rank is given the whole value."""
    if has_own_master(parameter):
        write_kept(parameter, value.to(parameter.device, torch.float32))
    with _whole(parameter):
        parameter.data.copy_(value)


class Masters:
    """Access by name to what DeepSpeed keeps in float32 of the model that it trains."""

    def __init__(self, engine: Any, adam: torch.optim.AdamW, stage: int) -> None:
        self.engine, self.adam, self.stage = engine, adam, stage
        self.parameters: dict[str, torch.nn.Parameter] = dict(engine.module.named_parameters())

    def weights(self, keep: bool, borrowed: bool = False) -> Weights:
        """A copy of the master weights on the CPU, where `keep`; an empty dictionary elsewhere.

        `borrowed`: the very tensors where they lie there as a whole, to be used before anything changes them.
        """
        if borrowed and self.stage == 0:
            found = ((name, parameter.detach()) for name, parameter in self.parameters.items())
            return _copies(found, keep, copy=False)
        return read_masters(self.parameters.items(), keep)

    def moments(self, keep: bool, borrowed: bool = False) -> Weights:
        """AdamW's moments on the CPU, named `exp_avg.<parameter>` and so on, copied or borrowed as `weights` are."""
        if self.stage == 0:
            found = ((m, name, self.adam.state[p][m]) for name, p in self.parameters.items() for m in MOMENTS)
        else:
            read = _utils().safe_get_full_optimizer_state
            found = ((m, name, read(p, m)) for name, p in self.parameters.items() for m in MOMENTS)
        copy = not borrowed or self.stage > 0
        return _copies(((f"{moment}.{name}", tensor.detach()) for moment, name, tensor in found), keep, copy)

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the masters, and the model's own parameters with them. Raises ArtifactError where they do not fit."""
        check_weights({name: tuple(shape_of(p)) for name, p in self.parameters.items()}, weights)
        for name, parameter in self.parameters.items():
            write_master(parameter, weights[name])

    @torch.no_grad()
    def load_moments(self, step: int, moments: Mapping[str, torch.Tensor]) -> None:
        """Replace AdamW's memory after `step` steps; any number of times."""
        for flat in self._optimized():
            memory = self.adam.state[flat]
            if not memory:
                memory |= {"step": torch.zeros(())} | {m: torch.zeros_like(flat) for m in MOMENTS}
            # In place: DeepSpeed links the parameters to the tensors that it finds here first, and never again.
            memory["step"].fill_(step)
        if 0 < self.stage < 3:
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                value = moments[f"{moment}.{name}"]
                if self.stage == 0:
                    self.adam.state[parameter][moment].copy_(value)
                else:
                    write_kept(parameter, value.to(self.engine.device), moment)

    @torch.no_grad()
    def scale_gradients(self, factor: float, step: int) -> None:
        """Let AdamW's memory be as if past gradients had been `factor` times as large, after `step` steps."""
        for flat in self._optimized():
            memory = self.adam.state[flat]
            memory["step"].fill_(step)
            memory["exp_avg"].mul_(factor)
            memory["exp_avg_sq"].mul_(factor**2)

    @torch.no_grad()
    def copy_into(self, model: torch.nn.Module) -> None:
        """Give another, whole model of the same architecture on every rank the weights of the one in training."""
        for name, parameter in model.named_parameters():
            own = self.parameters[name]
            with _whole(own, changed=False):
                parameter.copy_(own.data)

    def _optimized(self) -> list[torch.Tensor]:
        """The tensors that AdamW itself works on."""
        return list(self.parameters.values()) if self.stage == 0 else flat_masters(self.engine.optimizer)


def _utils() -> Any:
    return importlib.import_module("deepspeed.utils")


def _whole(parameter: torch.nn.Parameter, changed: bool = True) -> AbstractContextManager[Any]:
    """A block in which a parameter of the model is in one piece, and after which the changes to it stay."""
    if not in_zero3(parameter):
        return nullcontext()
    zero = importlib.import_module("deepspeed").zero
    gathered: AbstractContextManager[Any] = zero.GatheredParameters([parameter], modifier_rank=0 if changed else None)
    return gathered


def _copies(tensors: Iterator[tuple[str, torch.Tensor]], keep: bool, copy: bool = True) -> Weights:
    """Copies on the CPU, one after the other; with ZeRO all ranks must ask for each, and one need keep it.

    Without `copy`, only of what is not there in float32.
    """
    return {name: tensor.to("cpu", torch.float32, copy=copy) for name, tensor in tensors if keep}
