"""Specs as dataclasses: those that a plan writes, and those that are wrong."""

import json
from pathlib import Path

import pytest

from effopd.common.errors import UserError
from effopd.common.registry import BUILT_IN
from effopd.specs.read import SPECS, read_section, read_spec
from effopd.specs.segments import StepOfSegment
from effopd.specs.updates import LoraSettings
from effopd.workflow.job_specs import Plan, training_settings

ROOT = Path(__file__).parents[2]
LORA = {"rank": 4, "alpha": 8, "parameters": "all"}
RUNS = {
    "opd": {"extrapolation": {"triggers": "none"}},
    "effopd": {"training": {"lora": LORA}},
    "every": {"extrapolation": {"triggers": "every_step", "gate": {"metric": "reverse_kl", "source": "rollouts"}}},
}
MODELS = {
    "base": {"kind": "pretrain"},
    "pulled": {"kind": "pretrained", "path": "owner/name", "revision": "a" * 40},
    **{kind: {"kind": kind, "init": "base", "early_stopping": {}} for kind in ("grpo", "dapo", "ppo")},
    "teacher": {"kind": "grpo", "init": "base", "micro_batch": 4},
    "tuned": {"kind": "sft", "init": "base", "data": "samples", "sampling": {"from": "teacher"}, "lora": {}},
    "worked": {"kind": "sft", "init": "base"},
}
PREDICTIONS = {"expo": {"run": "opd", "method": "expo"}}
PLAN = Plan({"models": MODELS, "runs": RUNS, "predictions": PREDICTIONS, "seeds": [0]})


def jobs(plan: Plan):
    """(stage, spec) of a job of every kind, and of every run, model, prediction and figure."""
    yield "make_data", plan.spec("make_data")
    for model in plan.config["models"]:
        yield plan.model_stage(model), plan.spec(plan.model_stage(model), model=model)
        yield "tokenize_prompts", plan.spec("tokenize_prompts", model=model)
    for sample in plan.samples:
        yield "sample_responses", plan.spec("sample_responses", sample=sample)
    for pair in plan.preflights():
        yield "preflight", plan.spec("preflight", pair=pair)
    for run, seed, step in plan.points():
        where = {"run": run, "seed": str(seed), "step": str(step)}
        for stage in ("train_segment", "update_policy", "evaluate_candidates", "select_candidate"):
            yield stage, plan.spec(stage, **where)
        for stage in ("generate_rollouts", "score_rollouts"):
            yield stage, plan.spec(stage, **where, part="")
        yield "evaluate", plan.evaluate_run_spec(run)
        yield "collect_run", plan.spec("collect_run", run=run, seed=str(seed))
        yield "compare_local_theory", plan.spec("compare_local_theory", run=run, seed=str(seed))
    for prediction, seed, step in plan.predicted_points():
        yield "predict_weights", plan.spec("predict_weights", prediction=prediction, seed=str(seed), step=str(step))
    for subject in plan.dynamics_subjects():
        yield "analyze_weights", plan.spec("analyze_weights", subject=subject)
        yield "evaluate_interventions", plan.spec("evaluate_interventions", subject=subject)
    for student, teacher in plan.linearized:
        yield "linearize_student", plan.spec("linearize_student", student=student, teacher=teacher)
    for figure in plan.figures():
        yield "plot_figure", plan.spec("plot_figure", figure=figure)
    for stage in SPECS:
        if stage.startswith(("make_", "write_", "compare_with")) and stage != "make_data":
            yield stage, plan.spec(stage)


def test_every_job_of_a_plan_is_told_what_its_class_knows_and_all_of_it():
    seen = set()
    for stage, text in jobs(PLAN):
        spec, content = read_spec(stage, text), json.loads(text)
        assert type(spec) is SPECS[stage]
        assert spec.content == content
        for key in content:  # no key that nothing could read
            assert getattr(spec, key) is not None or content[key] is None, (stage, key)
        seen.add(stage)
    assert seen | {"evaluate_candidate"} == set(SPECS)


def test_every_stage_has_a_spec():
    assert set(SPECS) == set(BUILT_IN["stages"])


CONFIGS = [("config",), ("config", "comparison"), ("config", "harder"), ("config", "middle")]


@pytest.mark.parametrize("names", CONFIGS, ids=" ".join)
def test_the_training_of_every_configuration_that_comes_with_the_project(names):
    plan = Plan.of_files([ROOT / f"config/{name}.yaml" for name in names])
    assert plan.runs
    for settings in plan.runs.values():
        typed = training_settings(settings["training"])
        assert (typed.lr, typed.objective.support) == (
            settings["training"]["lr"],
            settings["training"]["objective"]["support"],
        )


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("train_segment", {"end": None}, "has `end`: Input should be a valid integer"),
        ("train_segment", {"step": 3}, "has `step`: Unexpected keyword argument"),
        ("update_policy", {"end": 3}, "has `end`"),
        ("evaluate", {"evaluation": {}}, "has no `evaluation.temperature` where one is needed"),
        ("select_candidate", {"extrapolation": 3}, "has `extrapolation`"),
        ("plot_figure", {"labels": []}, "has `labels`"),
    ],
)
def test_what_is_no_spec_is_refused_in_a_line_that_names_the_key(stage, change, words):
    text = next(text for name, text in jobs(PLAN) if name == stage)
    with pytest.raises(UserError) as refused:
        read_spec(stage, {**json.loads(text), **change})
    assert words in str(refused.value)
    assert str(refused.value).startswith("--spec ")
    assert str(refused.value).endswith(": it is not a spec of this version of effopd.")
    assert "\n" not in str(refused.value)


def test_numbers_keep_their_meaning():
    spec = read_spec("train_segment", PLAN.spec("train_segment", run="effopd", seed="0", step="1"))
    assert spec.training.lora == LoraSettings(4, 8.0, "all")
    assert spec.training.betas == (0.9, 0.999)
    assert spec.extrapolation is None
    assert spec.moments is None
    shard = PLAN.spec("generate_rollouts", run="opd", seed="0", step="1", part="")
    assert read_spec("generate_rollouts", shard).shard == (0, 1)
    assert isinstance(read_spec("generate_rollouts", {**json.loads(shard), "shard": [1, 3]}), StepOfSegment)
    with pytest.raises(UserError, match="`training`"):
        read_section(LoraSettings, {**LORA, "rank": "many"}, "`training`")
