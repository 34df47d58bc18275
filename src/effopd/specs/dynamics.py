"""What training did to the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effopd.specs.evaluation import Evaluate
from effopd.specs.section import JobSpec, Section


@dataclass(frozen=True, kw_only=True)
class AnalyzeWeights(JobSpec):
    """`analyze_weights`."""

    tolerance: float


@dataclass(frozen=True)
class EqualNormSettings(Section):
    """Fractions of the final update."""

    fractions: Sequence[float]


@dataclass(frozen=True)
class WindowSettings(Section):
    """Sliding windows of layers."""

    width: float  # as a share of the layers
    stride: int
    parts: Sequence[str]


@dataclass(frozen=True)
class ReconstructionSettings(Section):
    """Singular directions to keep, in percent."""

    top: Sequence[float]
    bottom: Sequence[float]
    norm: str  # to which the leading ones are rescaled: own or teacher


@dataclass(frozen=True)
class NormScalingSettings(Section):
    """An early update at the norms of the final one."""

    progress: float
    betas: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class InterventionSettings(Section):
    """What of the section `dynamics` the interventions depend on: those that are chosen, with their options."""

    interventions: Sequence[str]
    problems: int
    samples: int
    equal_norm: EqualNormSettings | None = None
    window: WindowSettings | None = None
    reconstruction: ReconstructionSettings | None = None
    norm_scaling: NormScalingSettings | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateInterventions(Evaluate):
    """`evaluate_interventions`."""

    dynamics: InterventionSettings


@dataclass(frozen=True)
class LocalTheorySettings(Section):
    """The section `dynamics.local_theory`."""

    completions: int
    iterations: int


@dataclass(frozen=True, kw_only=True)
class LinearizeStudent(JobSpec):
    """`linearize_student`."""

    local_theory: LocalTheorySettings
    seed: int
    batch_size: int
    max_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class CompareLocalTheory(JobSpec):
    """`compare_local_theory`."""

    run: str
    seed: int
