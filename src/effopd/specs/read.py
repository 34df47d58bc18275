"""From the JSON of a spec to its dataclass."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from effopd.common.errors import UserError
from effopd.specs import collection, data, dynamics, evaluation, models, preflight, reports, segments, triggers
from effopd.specs.section import JobSpec

SPECS: dict[str, type[JobSpec]] = {
    "make_data": data.MakeData,
    "tokenize_prompts": data.TokenizePrompts,
    "fetch_model": models.FetchModel,
    "pretrain_model": models.PretrainModel,
    "train_rl": models.TrainRL,
    "sample_responses": models.SampleResponses,
    "train_sft": models.TrainSFT,
    "preflight": preflight.Preflight,
    "train_segment": segments.TrainSegment,
    **dict.fromkeys(("generate_rollouts", "score_rollouts", "update_policy"), segments.StepOfSegment),
    **dict.fromkeys(("evaluate_candidates", "evaluate_candidate"), triggers.EvaluateCandidates),
    "predict_weights": triggers.PredictWeights,
    "select_candidate": triggers.SelectCandidate,
    "evaluate": evaluation.Evaluate,
    "evaluate_interventions": dynamics.EvaluateInterventions,
    "analyze_weights": dynamics.AnalyzeWeights,
    "linearize_student": dynamics.LinearizeStudent,
    "compare_local_theory": dynamics.CompareLocalTheory,
    "collect_run": collection.CollectRun,
    "write_config": reports.WriteConfig,
    "make_tables": reports.MakeTables,
    **dict.fromkeys(("make_task_table", "make_source_table"), reports.MakeTaskTable),
    "make_dynamics_tables": reports.MakeDynamicsTables,
    "make_local_theory_tables": reports.MakeLocalTheoryTables,
    "plot_figure": reports.PlotFigure,
    "compare_with_paper": reports.CompareWithPaper,
    "write_explorer": reports.WriteExplorer,
    "write_report": reports.WriteReport,
}


def read_spec(stage: str, spec: str | Mapping[str, Any]) -> Any:
    """The spec of a stage's job, of the class in SPECS.

    Raises UserError, which names the key, if it is none: whoever wrote it by hand is told.
    """
    content = json.loads(spec) if isinstance(spec, str) else dict(spec)
    return read_section(SPECS[stage], {**content, "content": content}, "--spec")


def read_section(section: Any, values: Mapping[str, Any], name: str) -> Any:
    """A dataclass `section` of these values. Raises UserError, which names the key below `name`, if they do not fit."""
    from pydantic import ValidationError

    try:
        return _adapter(section).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        what = f"has no `{key}` where one is needed" if first["type"] == "missing" else f"has `{key}`: {first['msg']}"
        raise UserError(f"{name} {what}: it is not a spec of this version of effopd.") from None


@cache
def _adapter(section: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(section)
