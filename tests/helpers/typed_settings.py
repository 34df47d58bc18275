"""Settings as stages and trainers take them: what a test does not say is the schema's default."""

from __future__ import annotations

from typing import Any

from effopd.config.schema import fill, merged, schema, section_defaults
from effopd.specs.extrapolation import ExtrapolationSettings
from effopd.specs.models import RLSettings
from effopd.specs.read import read_section
from effopd.specs.segments import TrainingSettings
from effopd.workflow import job_specs
from effopd.workflow.experiment import without_engine
from effopd.workflow.job_specs import Plan

ENGINE = {"name": "transformers", "dtype": "float32"}  # in the JSON of a spec


def training_settings(**changes: Any) -> TrainingSettings:
    """The section `training`, with these keys."""
    return job_specs.training_settings(_section("training", changes))


def extrapolation_settings(**changes: Any) -> ExtrapolationSettings:
    """The section `extrapolation`, with these keys; options of what is chosen by name stand below the name."""
    found: ExtrapolationSettings = read_section(
        ExtrapolationSettings, job_specs.extrapolation_section(_section("extrapolation", changes)), "`extrapolation`"
    )
    return found


def rl_settings(**changes: Any) -> RLSettings:
    """The section of a model that is trained by reinforcement learning, with these keys."""
    models = {"base": {"kind": "pretrain"}, "teacher": {"init": "base", **changes}}
    section = Plan({"models": models, "runs": {"opd": {}}}).config["models"]["teacher"]
    found: RLSettings = read_section(RLSettings, without_engine(section), "`models.teacher`")
    return found


def _section(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = fill(merged(section_defaults(name), changes), schema()["properties"][name])
    return found
