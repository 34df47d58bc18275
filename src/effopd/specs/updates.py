"""Optimizer steps: what all trainings share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from effopd.specs.section import Section


@dataclass(frozen=True, kw_only=True)
class HoldingSettings(Section):
    """How processes hold a model in training (docs/models.md)."""

    num_processes: int
    precision: str
    zero_stage: int
    gradient_checkpointing: bool
    offload_optimizer: bool

    @staticmethod
    def of(section: Mapping[str, Any]) -> HoldingSettings:
        """What a `models` or `training` section of the configuration says of it."""
        return HoldingSettings(**{key.name: section[key.name] for key in fields(HoldingSettings)})


@dataclass(frozen=True, kw_only=True)
class UpdateSettings(HoldingSettings):
    """Optimizer steps."""

    lr: float
    warmup_steps: int
    betas: tuple[float, float]
    weight_decay: float
    gradient_clipping: float  # largest gradient norm; 0 turns clipping off
    micro_batch: int | None = None  # most sequences per forward and backward pass


@dataclass(frozen=True)
class LoraSettings(Section):
    """Low-rank adapters."""

    rank: int
    alpha: float
    parameters: str
