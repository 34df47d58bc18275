"""The jobs that judge candidates, or predictions, and decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from effopd.specs.engines import EngineSettings, Sampling
from effopd.specs.extrapolation import ExtrapolationSettings, RaySettings
from effopd.specs.section import JobSpec, Task


@dataclass(frozen=True, kw_only=True)
class GateSpec(JobSpec):
    """What a gate depends on, for `evaluate_candidates` and `predict_weights`."""

    extrapolation: ExtrapolationSettings
    parts: Mapping[str, str]
    sampling: Sampling
    engine: EngineSettings
    precision: str
    task: Task
    seed: int
    step: int


@dataclass(frozen=True, kw_only=True)
class EvaluateCandidates(GateSpec):
    """`evaluate_candidates`, and `evaluate_candidate` of one."""

    coefficient: float | None = None


@dataclass(frozen=True, kw_only=True)
class SelectCandidate(JobSpec):
    """`select_candidate`."""

    extrapolation: RaySettings
    parts: Mapping[str, str]
    seed: int
    step: int


@dataclass(frozen=True, kw_only=True)
class PredictWeights(GateSpec):
    """`predict_weights`."""

    method: str
    states: Sequence[int]  # steps of the kept states that it starts from
    options: Mapping[str, Any] = field(default_factory=dict)  # of the method
