"""Evaluations of models, states and predictions."""

from __future__ import annotations

from dataclasses import dataclass

from effopd.specs.engines import EngineSettings
from effopd.specs.section import JobSpec, Section, Task


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Section):
    """What of the section `evaluation` an evaluation depends on, and what is evaluated how."""

    temperature: float
    seed: int
    batch_size: int
    max_new_tokens: int
    precision: str | None  # none: a model itself, as it is held when frozen
    split: str
    samples: int = 1
    kept_samples: int = 0


@dataclass(frozen=True, kw_only=True)
class Evaluate(JobSpec):
    """`evaluate`."""

    evaluation: EvaluationSettings
    engine: EngineSettings
    task: Task
