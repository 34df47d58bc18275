"""Low-rank adapters (LoRA, arXiv 2106.09685) that are merged at all times: W = base + (alpha / rank) B A.

The model holds W itself, whole and in float32, so that rollouts, states, extrapolation and analyses see what they see
of any run. Its forward pass is the ordinary one; only the gradients are those of A and B, and after each step of AdamW
on them W moves by what B A has moved by. Hence the base is nowhere stored: it is W less the product. Weights put in the
place of W, such as an accepted candidate, are taken up by the base, while A, B and their moments stay. And since every
step adds to W, with one rounding as in full fine-tuning, training that stops and goes on gives the same bits as
training that does not, however it is cut into jobs.

Shapes: an adapted matrix W is [out, in], its factors A [rank, in] and B [out, rank].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from effopd.common.errors import ConfigError
from effopd.common.randomness import generator
from effopd.extrapolation.candidates import moving_parameters
from effopd.losses.metrics import Metrics
from effopd.models.models import Weights, load_weights_into, weights_in, weights_of
from effopd.specs.updates import LoraSettings
from effopd.training.trainer import OptimizerState, Trainer, TrainerSettings

Factors = tuple[torch.Tensor, torch.Tensor]  # A and B of a matrix


class MergedLinear(torch.autograd.Function):
    """x W^T + bias, whose gradients besides that of x are those of A and B: that of W, [out, in], is never made."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # [..., in]
        weight: torch.Tensor,
        bias: torch.Tensor | None,  # [out], not trained
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        of_x = gradient @ weight if ctx.needs_input_grad[0] else None
        rows, inputs = gradient.flatten(0, -2), x.flatten(0, -2)
        of_a = ((rows @ b).T @ inputs).mul_(ctx.scale)
        of_b = (rows.T @ (inputs @ a.T)).mul_(ctx.scale)
        return of_x, None, None, of_a, of_b, None


class Adapters(nn.Module):
    """The factors of a model's adapted linear layers: what is trained in place of the model's own parameters.

    As a module it computes what the model does, holds the factors alone as parameters, named
    `<layer>.lora_A` and `<layer>.lora_B`, and has the model as `module`, as wrappers do.
    """

    def __init__(self, model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
        """Adapt `model` in place, as `training.lora` says.

        A is drawn by `seed`, uniform as a linear layer's weights are, and B is 0. Raises ConfigError if the parameters
        are not those of linear layers.
        """
        super().__init__()
        self._held = (model,)  # in a tuple, so that its parameters are not this module's
        self.scale: float = settings.alpha / settings.rank
        self._layers: dict[str, nn.Linear] = {}
        for name, layer in adapted_layers(model, settings.parameters):
            place = self._place(name)
            drawn = generator(seed, "lora", name).uniform(-1.0, 1.0, (settings.rank, layer.in_features))
            a = torch.from_numpy(drawn / math.sqrt(layer.in_features)).to(layer.weight)
            place.lora_A = nn.Parameter(a)
            place.lora_B = nn.Parameter(a.new_zeros(layer.out_features, settings.rank))
            self._layers[name] = layer
            self._adapt(layer, place)

    @property
    def module(self) -> PreTrainedModel:
        return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Adapters:
        self.module.train(mode)
        super().train(mode)
        return self

    @torch.no_grad()
    def factors(self) -> dict[str, Factors]:
        """Copies of A and B by layer."""
        return {name: (a.clone(), b.clone()) for name, a, b in self._factors()}

    @torch.no_grad()
    def merge_since(self, before: Mapping[str, Factors]) -> None:
        """Move each adapted W by scale (B A - B' A'), where A' and B' are the factors `before`.

        As (B - B') A + B' (A - A'), without the difference of two large products.
        """
        for name, a, b in self._factors():
            a_before, b_before = before[name]
            moved = torch.cat([b - b_before, b_before], 1) @ torch.cat([a, a - a_before])
            self._layers[name].weight.add_(moved.mul_(self.scale))

    def _factors(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        for name in self._layers:
            place: Any = self.get_submodule(name)
            yield name, place.lora_A, place.lora_B

    def _place(self, name: str) -> Any:
        """The module for a layer's factors, at the layer's own place in the tree."""
        place: nn.Module = self
        for part in name.split("."):
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        return place

    def _adapt(self, layer: nn.Linear, place: Any) -> None:
        """Let gradients through a layer flow to its factors."""

        def forward(x: torch.Tensor) -> torch.Tensor:
            if not torch.is_grad_enabled():
                return nn.functional.linear(x, layer.weight, layer.bias)
            merged: Any = MergedLinear
            y: torch.Tensor = merged.apply(x, layer.weight, layer.bias, place.lora_A, place.lora_B, self.scale)
            return y

        layer.forward = forward  # type: ignore[method-assign, assignment]


def adapted_layers(model: PreTrainedModel, which: str) -> list[tuple[str, nn.Linear]]:
    """The linear layers, but for the head, whose weight `which` names as `extrapolation.parameters` would.

    Norms, biases and embeddings that it names besides stay as they are. Raises ConfigError where it names no linear
    layer, or a mixture's experts that are one tensor.
    """
    try:
        chosen = set(moving_parameters((name for name, _ in model.named_parameters()), which))
    except ValueError as error:
        raise ConfigError(f"config: `lora.parameters`: {error}.") from None
    for name, parameter in model.named_parameters():
        if name in chosen and parameter.dim() > 2:
            raise ConfigError(
                f"config: `lora.parameters` is {which!r}, which names {name}, a stack of matrices that has no "
                "adapter here. Leave it out with a regular expression, such as `self_attn`."
            )
    found = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.weight" in chosen and layer is not model.get_output_embeddings()
    ]
    if not found:
        raise ConfigError(
            f"config: `lora.parameters` is {which!r}, which names no linear layer below the head. Write "
            "`attention_mlp`, or a regular expression that does."
        )
    return found


def factors_size(model: PreTrainedModel, settings: LoraSettings) -> int:
    """Numbers in the factors that `training.lora` asks for. Raises ConfigError as `adapted_layers` does."""
    layers = adapted_layers(model, settings.parameters)
    return sum(settings.rank * (layer.in_features + layer.out_features) for _, layer in layers)


class LoraTrainer(Trainer):
    """A Trainer whose AdamW works on the factors; the weights in and out are the whole model's, merged."""

    def __init__(
        self,
        model: PreTrainedModel,
        settings: TrainerSettings,
        lora: LoraSettings,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        """Train adapters of `model`, float32, on `device` (default: where it is), with fresh factors.

        `lora` is `training.lora` of the configuration.
        """
        model.to(device or model.device)  # type: ignore[arg-type]  # (its wrapper hides the signature)
        self.adapters = Adapters(model, lora, seed)
        super().__init__(model, settings, device, trained=self.adapters)

    def step(self, *args: Any, **kwargs: Any) -> tuple[dict[str, float], list[Metrics]]:
        before = self.adapters.factors()
        # No longer than needed: whether a weight requires gradients decides which kernel multiplies by it, and rollouts
        # come out bitwise alike only where it is as in jobs that do not train.
        self.model.requires_grad_(False)
        try:
            result = super().step(*args, **kwargs)
        finally:
            self.model.requires_grad_(True)
        self.adapters.merge_since(before)
        return result

    def weights(self, everywhere: bool = False, borrowed: bool = False) -> Weights:
        if not (self.first or everywhere):
            return {}
        if borrowed:
            return {name: tensor.to("cpu", torch.float32) for name, tensor in weights_in(self.model).items()}
        return weights_of(self.model)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the merged weights; the factors stay, so that the base takes up the difference."""
        load_weights_into(self.model, weights)

    def copy_weights_into(self, model: torch.nn.Module) -> None:
        load_weights_into(model, weights_in(self.model))

    def optimizer_state(self, borrowed: bool = False) -> OptimizerState:
        state = super().optimizer_state(borrowed)
        return OptimizerState(state.step, state.moments, self.masters.weights(keep=self.first, borrowed=borrowed))

    def load_optimizer_state(self, state: OptimizerState) -> None:
        self.masters.load_weights(state.factors)
        super().load_optimizer_state(state)
