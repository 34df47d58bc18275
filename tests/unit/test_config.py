"""The configuration: defaults, and one clear line for each way of getting it wrong."""

import copy
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from effopd.config import complete, parameter_table, run_settings
from effopd.plan import Plan
from effopd.runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
GOOD = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def edited(path: str, value):
    config = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = config
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trianing.lr", 1, "`trianing` is not a key. Did you mean `training`?"),
        ("training.learning_rate", 1, "`training.learning_rate` is not a key. Known keys: student, teacher, steps"),
        ("runs.opd.training.stepz", 4, "`runs.opd.training.stepz` is not a key. Did you mean `steps`?"),
        ("training.lr", "1e-5", "`training.lr` is '1e-5', which YAML reads as text. Write 1.0e-5 without quotes"),
        ("training.lr", "fast", "`training.lr` is 'fast'; it must be a number."),
        ("training.lr", 0, "`training.lr` is 0; it must be greater than 0."),
        ("training.steps", 6.5, "`training.steps` is 6.5; it must be a whole number."),
        ("training.steps", 48, "`extrapolation.triggers`: triggers at powers of two need `training.steps` to be one, and it is 48. Use 32 or 64"),
        ("training.teacher", "professor", "`training.teacher` is 'professor', which is no model. Name one of: base, teacher."),
        ("runs.opd.training", {"student": "pupil"}, "`runs.opd.training.student` is 'pupil', which is no model."),
        ("models.teacher.init", "nobody", "`models.teacher.init` is 'nobody', which is no model."),
        ("models.teacher.init", "teacher", "`models.teacher.init` leads back to itself (teacher -> teacher)."),
        ("models.teacher.kind", "sft", "`models.teacher.kind` is 'sft'; it must be one of pretrain, grpo."),
        ("models.base.stepz", 4, "`models.base.stepz` is not a key. Did you mean `steps`?"),
        ("extrapolation.coefficients", [2, 6, 4], "`extrapolation.coefficients` is [2, 6, 4]; it must increase."),
        ("extrapolation.gate.examples", 10**6, "`extrapolation.gate`.examples is 1000000, more than its source holds (`task.splits.train`: 8192)."),
        ("extrapolation.triggers", "sometimes", "`extrapolation.triggers` is 'sometimes'; see its meaning in config/README.md"),
        ("runs.effopd.extrapolation", {"triggers": [2, 100]}, "`runs.effopd.extrapolation.triggers`: 100 is beyond the last step (64)."),
        ("training.prompts_per_step", 9000, "`training.prompts_per_step` is 9000, more than the training split holds"),
        ("training.batch_size", 129, "`training.batch_size` is 129, more than the 128 rollouts of a step."),
        ("evaluation.baseline", "ppo", "`evaluation.baseline` is 'ppo', which is no run. Name one of: opd, effopd"),
        ("seeds", [1, 1], "`seeds` is [1, 1]; its items must differ."),
        ("seeds", [], "`seeds` is []; it needs at least 1 items."),
        ("runs.Fast-Run", {}, "the name `Fast-Run` is not usable."),
        ("runs.models", {}, "`runs.models`: the name is reserved."),
        ("task.max_terms", 2, "`task.max_terms` is 2, less than `task.min_terms` (3)."),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_with_key_value_and_remedy(path, value, message):
    with pytest.raises(ConfigError) as caught:
        complete(edited(path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_are_filled_in_and_completing_twice_changes_nothing():
    config = complete(GOOD)
    assert config["training"]["lr"] == 1e-5
    assert config["extrapolation"]["coefficients"] == [2, 4, 6, 8, 10]
    assert config["models"]["teacher"]["samples_per_prompt"] == 8
    assert complete(config) == config
    assert complete(GOOD) is not GOOD


def test_a_run_overrides_only_what_it_names():
    config = complete(GOOD)
    settings = run_settings(config, "effopd_kl")
    assert settings["extrapolation"]["gate"] == {
        **config["extrapolation"]["gate"],
        "metric": "reverse_kl",
        "paired": True,
    }
    assert settings["training"] == config["training"]
    assert run_settings(config, "opd_tuned")["training"]["lr"] == 2e-4


def test_every_shipped_overlay_is_a_configuration():
    for overlay in sorted((ROOT / "config").glob("*.yaml")):
        merged = copy.deepcopy(GOOD)
        update_config(merged, yaml.safe_load(overlay.read_text()))  # as --configfile does
        Plan(merged)


def test_the_documented_table_is_the_schema():
    assert parameter_table() in (ROOT / "config/README.md").read_text(), (
        "config/README.md is stale: paste the output of `effopd describe-config` into it"
    )


def test_boundaries_and_triggers():
    plan = Plan(edited("runs.opd_tuned.training", {"lr": 1e-4, "steps": 20}))
    assert plan.boundaries("effopd") == plan.triggers("effopd") == (1, 2, 4, 8, 16, 32, 64)
    assert plan.triggers("opd") == ()
    assert plan.boundaries("opd_tuned") == (1, 2, 4, 8, 16, 20)
    assert [plan.previous_boundary("effopd", s) for s in (1, 2, 64)] == [0, 1, 32]


def test_what_cannot_change_a_result_is_in_no_spec():
    plain, moved = Plan(GOOD), Plan(edited("runtime", {"threads": 3, "device": "cpu", "warm": "off"}))
    for stage, wildcards in {
        "train_segment": {"run": "effopd", "seed": "0", "step": "8"},
        "pretrain_model": {"model": "base"},
        "write_report": {},
    }.items():
        assert plain.spec(stage, **wildcards) == moved.spec(stage, **wildcards)


def test_extending_a_run_leaves_the_specs_of_its_earlier_segments():
    longer = Plan(edited("training", {"steps": 128}))
    where = {"run": "effopd", "seed": "1", "step": "64"}
    assert Plan(GOOD).spec("train_segment", **where) == longer.spec("train_segment", **where)
