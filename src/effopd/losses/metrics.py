"""What a loss returns beside its value: sums over tokens, which add up over chunks, micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch

Metrics = dict[str, torch.Tensor]  # float64 scalars by name


def sums_of(**values: torch.Tensor) -> Metrics:
    """The sum of each tensor of per-token values, in the tensor's own precision, detached."""
    return {name: value.detach().sum().double() for name, value in values.items()}


def add_up(parts: Iterable[Metrics]) -> Metrics:
    """Sums over the tokens of all parts, name by name, in their order; a part may lack names that others have."""
    total: Metrics = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total
