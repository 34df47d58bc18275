"""How completions are generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from effopd.specs.section import Section


@dataclass(frozen=True)
class EngineSettings(Section):
    """A rollout engine (docs/engines.md)."""

    name: str  # `engine`
    dtype: str = "float32"  # `engine_dtype`
    options: Mapping[str, Any] = field(default_factory=dict)  # the section with the engine's own name
    code: str = ""  # digest of the engine's code


@dataclass(frozen=True)
class Sampling(Section):
    """How completions are sampled: always from the full distribution, since truncation biases log-prob ratios."""

    temperature: float  # 0 is greedy
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.max_new_tokens < 1:
            raise ValueError(f"temperature must be >= 0 and max_new_tokens >= 1, got {self}")
