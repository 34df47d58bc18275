"""On-policy distillation: the jobs on a segment, the steps between two kept states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from effopd.specs.engines import EngineSettings
from effopd.specs.extrapolation import ExtrapolationSettings
from effopd.specs.section import JobSpec, Section, Task
from effopd.specs.updates import LoraSettings, UpdateSettings


@dataclass(frozen=True)
class ObjectiveSettings(Section):
    """What an update minimizes (docs/objectives.md)."""

    support: str  # sampled, top_k or full
    divergence: str
    top_k: int = 64
    reward_scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)  # of a divergence that another package adds


@dataclass(frozen=True)
class HorizonSettings(Section):
    """The longest rollout: `tokens`, growing to `max_new_tokens` over `growth_steps`."""

    growth_steps: int = 0
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(UpdateSettings):
    """On-policy distillation: `training` of a run, without what decides which states are kept."""

    student: str
    teacher: str
    prompts_per_step: int
    samples_per_prompt: int
    batch_size: int
    max_new_tokens: int
    temperature: float
    scored_by: str
    importance_ratio_cap: float
    objective: ObjectiveSettings
    horizon: HorizonSettings
    lora: LoraSettings | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentSpec(JobSpec):
    """What the jobs on a segment, the steps between two kept states, have in common."""

    training: TrainingSettings
    engine: EngineSettings
    extrapolation: ExtrapolationSettings | None  # after every step
    moments: str | None  # what becomes of AdamW's where training goes on from a candidate, or jumps after a step
    parts: Mapping[str, str]  # digests of the code behind names in these sections
    task: Task
    seed: int
    start: int  # the step of the state that the segment starts from


@dataclass(frozen=True, kw_only=True)
class TrainSegment(SegmentSpec):
    """`train_segment`."""

    end: int


@dataclass(frozen=True, kw_only=True)
class StepOfSegment(SegmentSpec):
    """`update_policy`, and `generate_rollouts` and `score_rollouts` of a step or a shard of it."""

    step: int
    shard: tuple[int, int] = (0, 1)  # number, count
