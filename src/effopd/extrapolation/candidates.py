"""Candidates on one ray, current + c * (current - anchor), and weights that can be put there."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from effopd.common.errors import ConfigError

# What the released code's name filter catches besides the projections themselves (paper section 2).
ATTENTION_MLP = r"\.(self_attn|mlp)\.|\.post_attention_layernorm\."


def moving_parameters(names: Iterable[str], which: str) -> list[str]:
    """The parameters that extrapolation moves.

    `which` is "attention_mlp" (projections, q_norm, k_norm and post_attention_layernorm, as released), "all", or a
    regular expression searched for in each name. Raises ValueError where it is no regular expression or matches none.
    """
    pattern = {"attention_mlp": ATTENTION_MLP, "all": ""}.get(which, which)
    try:
        moving = [name for name in names if re.search(pattern, name)]
    except re.error as error:
        raise ValueError(f"{which!r} is not a regular expression ({error})") from None
    if not moving:
        raise ValueError(f"{which!r} matches no parameter of the model")
    return moving


def moving_or_refuse(names: Iterable[str], which: str, key: str = "`extrapolation.parameters`") -> list[str]:
    """As `moving_parameters`, of a setting of the configuration: raises ConfigError where it fits none of them."""
    try:
        return moving_parameters(names, which)
    except ValueError as error:
        raise ConfigError(f"config: {key}: {error}.") from None


@torch.no_grad()
def candidate(
    current: Mapping[str, torch.Tensor],
    anchor: Mapping[str, torch.Tensor],
    coefficient: float,
    moving: Collection[str],
) -> dict[str, torch.Tensor]:
    """current + coefficient * (current - anchor) for the moving parameters, the current weights for the others.

    Tensors float32 of equal shapes by name; each operation rounds once to float32, so every caller gets the same bits.
    Coefficient 0 is the current weights, -1 the anchor. Raises ValueError where names, shapes or types differ.
    """
    check_alike(current, anchor)
    chosen = set(moving)
    return {
        name: tensor + (tensor - anchor[name]) * coefficient if name in chosen else tensor
        for name, tensor in current.items()
    }


@torch.no_grad()
def delta_norms(
    current: Mapping[str, torch.Tensor], anchor: Mapping[str, torch.Tensor], moving: Collection[str]
) -> dict[str, float]:
    """Frobenius norms of the last update: of all parameters and of the moving ones, accumulated in float64.

    Sums over parameters are exact, so that their order does not matter.
    """
    check_alike(current, anchor)
    # In place: in float64 an embedding takes twice the memory that the model has for it.
    squares = {name: current[name].double().sub_(anchor[name]).square_().sum().item() for name in current}
    return {"all": math.fsum(squares.values()) ** 0.5, "moving": math.fsum(squares[name] for name in moving) ** 0.5}


@dataclass
class RayInMemory:
    """Weights that are whole in memory, on the ray from an anchor through them (driver.Ray).

    Tensors float32 of equal shapes by name; `modules` are the names of the parameters that move, by module. Nothing is
    computed before it is asked for. Raises ValueError where names, shapes or types of the two differ.
    """

    current: Mapping[str, torch.Tensor]
    anchor: Mapping[str, torch.Tensor]
    modules: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        check_alike(self.current, self.anchor)
        self._coefficients: dict[str, float] = {}  # by parameter, if not 0

    def put(self, coefficients: Mapping[str, float]) -> None:
        names = ((name, module) for module, members in self.modules.items() for name in members)
        self._coefficients = {name: coefficients[module] for name, module in names if coefficients[module] != 0}

    def tensor(self, name: str) -> torch.Tensor:
        """One parameter where the weights were put."""
        if name not in self._coefficients:
            return self.current[name]
        one, start = {name: self.current[name]}, {name: self.anchor[name]}
        return candidate(one, start, self._coefficients[name], one)[name]

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights where they were put."""
        return {name: self.tensor(name) for name in self.current}

    def update_norm(self) -> dict[str, float]:
        """Frobenius norms of the last update: of all parameters, and of the moving ones."""
        return delta_norms(self.current, self.anchor, [name for names in self.modules.values() for name in names])


def check_alike(current: Mapping[str, torch.Tensor], anchor: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError, naming the parameters, unless both are float32 tensors of the same names and shapes."""
    if differ := sorted(current.keys() ^ anchor.keys()):
        raise ValueError(f"the checkpoints differ in their parameters: {', '.join(differ[:5])}")
    for name, tensor in current.items():
        other = anchor[name]
        if tensor.shape != other.shape:
            raise ValueError(f"{name} is {tuple(tensor.shape)} in one checkpoint, {tuple(other.shape)} in the other")
        if tensor.dtype != torch.float32 or other.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype} and {other.dtype}: extrapolate float32 master weights only")
