"""The float32 weights that a Trainer's optimizer updates, wherever accelerate or DeepSpeed keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from effopd.common.errors import UserError
from effopd.extrapolation.candidates import RayInMemory
from effopd.models.models import Weights
from effopd.training.deepspeed_compat import has_own_master
from effopd.training.master_weights import read_masters, shape_of, write_master


def rank() -> int:
    """The rank of this process; 0 if training is not distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """The number of training processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


class MasterWeights:
    """The trainable parameters of a model whose optimizer is set up.

    They are the model's own parameters where those are float32 (also under autocast and DDP), and DeepSpeed's float32
    copies where it keeps some. Rank 0 holds what is read, and alone is asked what to write; all ranks must call alike.
    Raises UserError if there are no float32 weights, or if the model is sharded by other means than ZeRO.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        for name, parameter in self.parameters.items():
            if type(getattr(parameter, "data", None)).__name__ == "DTensor" or "_flat_param" in name:
                raise UserError("EffOPDCallback knows no FSDP: its parameters are sharded. Use DDP or DeepSpeed ZeRO.")
            if parameter.dtype != torch.float32 and not has_own_master(parameter):
                raise UserError(
                    f"{name} is trained in {parameter.dtype} without float32 master weights, where small updates round "
                    "away. Load the model in float32 and set bf16=True in the training arguments, or use DeepSpeed."
                )

    def read(self) -> Weights:
        """Copies on the CPU, float32, by name; empty on all ranks but the first."""
        return read_masters(self.parameters.items(), keep=rank() == 0)

    def write(self, names: Iterable[str], value_of: Callable[[str], torch.Tensor]) -> None:
        """Set parameters to `value_of(name)`, which only the first rank is asked for: masters and working copies."""
        for name in names:
            parameter = self.parameters[name]
            device = parameter.device
            value = value_of(name).to(device) if rank() == 0 else torch.empty(shape_of(parameter), device=device)
            if ranks() > 1:
                dist.broadcast(value, 0)
            write_master(parameter, value)


@dataclass
class MasterRay(RayInMemory):
    """The master weights of a model in training, put on their ray in place: for all ranks together.

    The first rank holds the current weights and the anchor, and the others neither.
    """

    masters: MasterWeights

    def put(self, coefficients: Mapping[str, float]) -> None:
        super().put(coefficients)
        for names in self.modules.values():
            self.masters.write(names, self.tensor)
