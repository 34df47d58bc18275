"""PPO's value head: a linear map of the policy's last hidden states, trained with the policy and saved without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from effopd.training.trainer import zero_of_logits

NAME = "value_head"
PARAMETERS = (f"{NAME}.weight", f"{NAME}.bias")


class ValueHead(torch.nn.Linear):
    """Hidden states [..., H] -> float32 values [...], 0 everywhere at first.

    `scale` multiplies what the linear map says: AdamW, whose steps do not depend on the size of gradients, then moves
    values that many times faster than it would at the policy's learning rate, which is too low for a map that starts
    from nothing.
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__(width, 1)
        self.scale = scale
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return super().forward(states).squeeze(-1).float() * self.scale


def attach_value_head(model: PreTrainedModel, scale: float) -> None:
    """Give a model a value head, as one of its parameters' modules."""
    head = ValueHead(model.config.get_text_config().hidden_size, scale)
    setattr(model, NAME, head.to(model.device, model.dtype))


@contextmanager
def values_of(model: Any) -> Iterator[list[torch.Tensor]]:
    """Meanwhile each forward pass of a model with a value head adds its values to the list: float32 [B, T].

    `model` is the model or the DeepSpeed engine around it. Computed inside the forward pass, because only there does
    ZeRO 3 have the head's parameters together.
    """
    plain: PreTrainedModel = getattr(model, "module", model)
    found: list[torch.Tensor] = []

    def value(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        found.append(getattr(plain, NAME)(output.last_hidden_state))

    hook = plain.base_model.register_forward_hook(value)
    try:
        yield found
    finally:
        hook.remove()


def zero_of_logits_and_values(model: PreTrainedModel, token: torch.Tensor) -> torch.Tensor:
    """`trainer.zero_of_logits` of a model with a value head, by way of it, too."""
    with values_of(model) as values:
        loss = zero_of_logits(model, token)
    return loss + values[0].sum() * 0.0
