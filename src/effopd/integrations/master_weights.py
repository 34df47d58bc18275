"""The float32 weights that a Trainer's optimizer updates, wherever accelerate or DeepSpeed keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from effopd.models import Weights
from effopd.runtime.errors import UserError


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


class MasterWeights:
    """The trainable parameters of a model whose optimizer is set up.

    They are the model's own parameters where those are float32 (also under autocast and DDP), and DeepSpeed's float32
    copies where it keeps some (ZeRO 1 to 3, bf16 or fp16). Rank 0 holds what is read; all ranks must call alike.
    Raises UserError where there are no float32 weights, or where the model is sharded by other means than ZeRO.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, parameter in self.parameters.items():
            if type(getattr(parameter, "data", None)).__name__ == "DTensor" or "_flat_param" in name:
                raise UserError("EffOPDCallback knows no FSDP: its parameters are sharded. Use DDP or DeepSpeed ZeRO.")
            if parameter.dtype != torch.float32 and not _in_zero3(parameter) and not _mapped(parameter):
                raise UserError(
                    f"{name} is trained in {parameter.dtype} without float32 master weights, where small updates round "
                    "away. Load the model in float32 and set bf16=True in the training arguments, or use DeepSpeed."
                )

    def read(self) -> Weights:
        """Copies on the CPU, float32, by name; empty on all ranks but the first."""
        weights = {}
        for name, parameter in self.parameters.items():
            value = _read(parameter)
            if rank() == 0:
                weights[name] = value.detach().to("cpu", torch.float32, copy=True).view(_shape(parameter))
        return weights

    @torch.no_grad()
    def write(self, names: Iterable[str], value_of: Callable[[str], torch.Tensor]) -> None:
        """Set parameters to `value_of(name)`, which only the first rank is asked for: masters and working copies."""
        for name in names:
            parameter = self.parameters[name]
            device = parameter.device
            value = value_of(name).to(device) if rank() == 0 else torch.empty(_shape(parameter), device=device)
            if ranks() > 1:
                dist.broadcast(value, 0)
            if _in_zero3(parameter):
                _write_zero3(parameter, value)
                continue
            if _mapped(parameter):
                _tensor_fragment().safe_set_full_fp32_param(parameter, value)
            parameter.copy_(value)


def _in_zero3(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _mapped(parameter: nn.Parameter) -> bool:
    """Whether ZeRO 1 or 2 or DeepSpeed's bf16 optimizer keeps a float32 copy."""
    return hasattr(parameter, "_hp_mapping")


def _shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size(parameter.ds_shape) if _in_zero3(parameter) else parameter.shape  # type: ignore[attr-defined]


def _read(parameter: nn.Parameter) -> torch.Tensor:
    if not (_in_zero3(parameter) or _mapped(parameter)):
        return parameter
    value: torch.Tensor = _tensor_fragment().safe_get_full_fp32_param(parameter)
    return value


def _write_zero3(parameter: Any, value: torch.Tensor) -> None:
    """This rank's slice of the float32 weights, and the partitioned parameter itself."""
    import deepspeed

    size = parameter.ds_tensor.numel()
    padded = torch.zeros(size * ranks(), device=value.device)
    padded[: value.numel()] = value.flatten()
    _tensor_fragment().safe_set_local_fp32_param(parameter, padded[rank() * size : (rank() + 1) * size])
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if rank() == 0:
            parameter.copy_(value)


def _tensor_fragment() -> Any:
    import deepspeed.utils

    return deepspeed.utils
