"""Tables, figures and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from effopd.specs.section import JobSpec, Section


@dataclass(frozen=True)
class TabledRun(Section):
    """What the tables need to know of a run."""

    run: str
    group: str
    student: str
    teacher: str
    boundaries: Sequence[int]
    triggers: Sequence[int]
    every_step: bool
    metric: str


@dataclass(frozen=True)
class TabledPrediction(Section):
    """What the tables need to know of a prediction."""

    prediction: str
    run: str
    group: str
    steps: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class MakeTables(JobSpec):
    """`make_tables`."""

    runs: Sequence[TabledRun]
    predictions: Sequence[TabledPrediction]
    models: Sequence[str]
    pairs: Sequence[tuple[str, str]]  # (run, the one that it is compared with)
    seeds: Sequence[int]
    confidence: float


@dataclass(frozen=True)
class EvaluatedRun(Section):
    """The steps after which a run, or a prediction, was evaluated."""

    run: str
    student: str
    steps: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class MakeTaskTable(JobSpec):
    """`make_task_table` and `make_source_table`."""

    folder: str  # of the evaluations on `{task}`
    tasks: Sequence[str]
    models: Sequence[str]
    runs: Sequence[EvaluatedRun]
    seeds: Sequence[int]
    confidence: float


@dataclass(frozen=True)
class Subject(Section):
    """Whose weights were looked into."""

    subject: str  # its folder
    run: str  # as tables name it
    seed: int


@dataclass(frozen=True, kw_only=True)
class MakeDynamicsTables(JobSpec):
    """`make_dynamics_tables`."""

    subjects: Sequence[Subject]
    tables: Sequence[str]
    confidence: float


@dataclass(frozen=True, kw_only=True)
class MakeLocalTheoryTables(JobSpec):
    """`make_local_theory_tables`."""

    linearized: Sequence[tuple[str, str]]  # (student, teacher)
    runs: Sequence[str]
    seeds: Sequence[int]
    confidence: float


@dataclass(frozen=True, kw_only=True)
class LooksSpec(JobSpec):
    """What the names and colors of runs depend on, and what there is to draw of weights."""

    runs: Sequence[str]
    groups: Sequence[tuple[str, Sequence[str]]]  # (name, runs)
    labels: Mapping[str, str]  # by run
    baseline: str
    seeds: Sequence[int]
    models: Sequence[str]
    supervised: Sequence[str] = ()  # those of them that are fine-tuned


@dataclass(frozen=True)
class FigureOptions(Section):
    """The section of a figure in `figures`; inches and dots per inch."""

    width: float
    dpi: int
    height: float | None = None


@dataclass(frozen=True, kw_only=True)
class PlotFigure(LooksSpec):
    """`plot_figure`."""

    figure: str
    options: FigureOptions
    interventions: Sequence[str]
    confidence: float
    references: Sequence[str] = ()
    own_references: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CompareWithPaper(JobSpec):
    """`compare_with_paper`."""

    runs: Sequence[str]
    models: Sequence[str]
    tables: Sequence[str]
    confidence: float


@dataclass(frozen=True, kw_only=True)
class WriteExplorer(LooksSpec):
    """`write_explorer`."""

    template: str  # its digest


@dataclass(frozen=True, kw_only=True)
class WriteConfig(JobSpec):
    """`write_config`."""

    config: dict[str, Any]


@dataclass(frozen=True)
class SampledEvaluation(Section):
    """Whose sample completions the report shows; of a model (`models/<name>`), seed and step are 0."""

    run: str
    seed: int
    step: int


@dataclass(frozen=True, kw_only=True)
class WriteReport(JobSpec):
    """`write_report`."""

    config: dict[str, Any]
    runs: Sequence[str]  # in the configured order, as the next
    predictions: Sequence[str]
    several_sources: bool
    preflights: Mapping[str, Sequence[str]]  # runs by the name of their check
    dynamics_tables: Sequence[str]
    figures: Sequence[str]
    template: str
    samples: Sequence[SampledEvaluation] = ()
