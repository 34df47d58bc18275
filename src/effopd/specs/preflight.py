"""What is checked before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from effopd.specs.engines import EngineSettings
from effopd.specs.section import JobSpec, Section, Task
from effopd.specs.updates import HoldingSettings, LoraSettings


@dataclass(frozen=True)
class PreflightSettings(Section):
    """The section `preflight`."""

    problems: int
    max_new_tokens: int
    accept: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class CheckedTraining(HoldingSettings):
    """What preflight checks of a run's `training`."""

    student: str
    teacher: str
    scored_by: str
    batch_size: int
    max_new_tokens: int
    temperature: float
    engine: EngineSettings
    micro_batch: int | None = None
    lora: LoraSettings | None = None


@dataclass(frozen=True)
class CheckedGate(Section):
    """A gate that counts right answers, and the search that asks it: of all runs that have them alike."""

    runs: Sequence[str]
    search: str
    coefficients: Sequence[float]
    accept_ties: bool
    examples: int
    samples: int
    paired: bool


@dataclass(frozen=True, kw_only=True)
class Preflight(JobSpec):
    """`preflight`."""

    preflight: PreflightSettings
    training: CheckedTraining
    prompt: Mapping[str, Any] | None
    task: Task
    beside: tuple[int, bool]  # students beside the one in training, and whether the teacher is
    states: Sequence[tuple[str, int, int]]  # (run, seed, step) that will be kept
    top_k: int = 0  # the most that an objective keeps apart; 0: none does
    gates: Sequence[CheckedGate] = ()
