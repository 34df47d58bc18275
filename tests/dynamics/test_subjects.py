"""Whose weights the workflow looks into, and in which tables that ends."""

import json

import pytest

from effopd.workflow.job_specs import Plan

CONFIG = {
    "models": {
        "base": {"kind": "pretrain"},
        "tuned": {"kind": "grpo", "init": "base"},
        "teacher": {"kind": "grpo", "init": "tuned"},
        "stranger": {"kind": "pretrain", "seed": 5},
    },
    "runs": {"opd": {}, "other": {"training": {"teacher": "stranger"}}},
    "seeds": [0, 3],
}
ALL = ["opd/seed0", "opd/seed3", "other/seed0", "other/seed3", "models/teacher"]


@pytest.mark.parametrize(
    ("dynamics", "subjects"),
    [
        ({}, ALL),  # a teacher that was not trained from the student is not looked into
        ({"seeds": [3], "runs": ["other"]}, ["other/seed3"]),
        ({"models": []}, ALL[:4]),
        ({"runs": ["opd"], "seeds": [0], "models": ["stranger", "tuned"]}, ["opd/seed0", "models/stranger", "models/tuned"]),
        ({"enabled": False}, []),
    ],
)  # fmt: skip
def test_subjects(dynamics, subjects):
    plan = Plan({**CONFIG, "dynamics": dynamics})
    assert plan.dynamics_subjects() == subjects
    assert bool(plan.dynamics_tables()) == bool(subjects)


def test_a_model_is_compared_with_the_first_run_that_it_teaches_or_the_baseline():
    plan = Plan(CONFIG)
    assert plan.dynamics_run("other/seed3") == "other"
    assert plan.dynamics_run("models/stranger") == "other"
    assert plan.dynamics_run("models/tuned") == "opd"


def test_tables_are_those_of_the_chosen_interventions():
    def tables(chosen):
        return Plan({**CONFIG, "dynamics": {"interventions": chosen}}).dynamics_tables()

    weights = ["dynamics_spectra", "dynamics_norms", "dynamics_alignment"]
    assert tables([]) == weights
    assert tables(["path"]) == [*weights, "dynamics_interventions"]
    assert tables(["path", "representation"]) == [*weights, "dynamics_interventions", "dynamics_representation"]


def test_options_of_interventions_that_are_not_made_change_no_fingerprint():
    def spec(**dynamics):
        plan = Plan({**CONFIG, "dynamics": {"interventions": ["window"], **dynamics}})
        return json.loads(plan.spec("evaluate_interventions", subject="opd/seed0"))

    assert spec(norm_scaling={"betas": [1]}, tolerance=0) == spec()
    assert spec(window={"width": 1}) != spec()


def test_a_model_that_was_fine_tuned_has_checkpoints_and_is_no_reinforcement_learning():
    models = {**CONFIG["models"], "cold": {"kind": "sft", "init": "base", "steps": 5}}
    plan = Plan({**CONFIG, "models": models, "dynamics": {"models": ["cold", "teacher"]}})
    assert plan.subject_steps("models/cold") == (1, 2, 4, 5)
    assert json.loads(plan.spec("plot_figure", figure="norms"))["supervised"] == ["cold"]
    assert json.loads(plan.spec("compare_with_paper"))["models"] == ["teacher"]
    taught = Plan({**CONFIG, "models": models, "runs": {"opd": {"training": {"teacher": "cold"}}}})
    assert "models/cold" in taught.dynamics_subjects(), "it was trained from the student"
