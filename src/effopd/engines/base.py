"""The interface of rollout engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from effopd.rollouts import Rollouts


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled: always from the full distribution, since truncation biases log-prob ratios."""

    temperature: float  # 0 is greedy
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_new_tokens < 1:
            raise ValueError(f"temperature must be >= 0 and max_new_tokens >= 1, got {self}")


class RolloutEngine(Protocol):
    """Generates completions. The n-th fixed batch of prompts gives the same rollouts whatever the other batches are."""

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the model's weights in place."""

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Rollouts:
        """One completion for each prompt (token ids); `seeds[i]` alone decides the randomness of completion i."""
