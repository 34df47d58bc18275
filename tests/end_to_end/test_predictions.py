"""Predictions in the workflow: compared like runs, cached like runs, and looked after like runs."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from workflow_runs import ROOT, Workflow, effopd

pytestmark = pytest.mark.slow

PREDICTIONS = {
    "alpha": {"run": "opd", "method": "alpha", "label": "AlphaOPD", "gate": {"examples": 8}},
    "relex": {
        "run": "effopd", "method": "relex", "search": "all", "coefficients": [1, 3],
        "gate": {"source": "rollouts", "examples": 8},
    },
}  # fmt: skip
REPORT = {"write_report": 1}
TABLES = {"make_tables": 1, "plot_figure": 5, **REPORT}
# Of each, with 2 seeds, from the states at steps 2 and 4; alpha asks for accuracies at steps 0, 1, 2 and 4.
RELEX = {"predict_weights": 4, "evaluate_prediction": 4, **TABLES}
ALPHA = {"validate_state": 8, **RELEX}
BOTH = {"predict_weights": 8, "evaluate_prediction": 8, **TABLES}


@pytest.fixture(scope="module")
def predicted(undisturbed, finished) -> Workflow:
    """The tiny experiment, finished, and then two predictions more. Not to be changed: copy it."""

    def make(folder: Path) -> Workflow:
        workflow = undisturbed.copy(folder)
        workflow.config["predictions"] = PREDICTIONS
        assert workflow.planned() == {"validate_state": 8, "write_config": 1, **BOTH}
        return workflow

    return finished("predictions", make)


@pytest.fixture
def copy(predicted, tmp_path) -> Workflow:
    return predicted.copy(tmp_path)


def test_predictions_are_runs_in_every_table_and_pay_for_their_choice(predicted):
    evaluation = pd.read_csv(predicted.path("tables/evaluation.csv")).set_index(["run", "seed", "step"])
    for name, run in (("alpha", "opd"), ("relex", "effopd")):
        own = evaluation.loc[name]
        assert own.index.tolist() == [(0, 2), (0, 4), (1, 2), (1, 4)]
        behind = evaluation.loc[run].loc[own.index]
        gate = own["gate_generated_tokens"] - behind["gate_generated_tokens"]
        assert (own["generated_tokens"] == behind["generated_tokens"] + gate).all()
        assert ((gate > 0) == (name == "alpha")).all(), "a gate on rollouts generates nothing"
        assert (own["scored_tokens"] > behind["scored_tokens"]).all()
        assert (own["gate_seconds"] > behind["gate_seconds"]).all()
        assert (own["trained_tokens"] == behind["trained_tokens"]).all()
    for table in ("speedup", "summary", "extrapolation"):
        assert {"alpha", "relex"} <= set(pd.read_csv(predicted.path(f"tables/{table}.csv"))["run"])
    assert predicted.path("report.html").read_text().count("AlphaOPD") >= 3
    items = pd.read_parquet(predicted.path("evaluation/relex/seed0/4.items.parquet"))
    state = pd.read_parquet(predicted.path("evaluation/effopd/seed0/4.items.parquet"))
    assert items["index"].tolist() == state["index"].tolist()


def test_a_prediction_that_keeps_the_last_state_is_that_state(predicted):
    """The random numbers of the evaluation are the same for all: equal weights, equal outcomes."""
    kept = 0
    for path in predicted.path("predictions").glob("*/seed*/*/prediction.json"):
        result = json.loads(path.read_text())["result"]
        name, seed, step = path.parts[-4:-1]
        run = PREDICTIONS[name]["run"]
        own, state = (
            pd.read_parquet(predicted.path(f"evaluation/{of}/{seed}/{step}.items.parquet")) for of in (name, run)
        )
        if result["coefficient"] == 0:
            kept += 1
            pd.testing.assert_frame_equal(own, state)
        elif name == "relex":
            assert not own["reverse_kl"].equals(state["reverse_kl"])
    assert kept, "every prediction was accepted: the test proves nothing"


CHANGES = {
    "nothing": ({}, {}),
    "a label": ({"predictions": {"alpha": {"label": "Alpha"}}}, {"write_config": 1, "plot_figure": 5, **REPORT}),
    "a coefficient": ({"predictions": {"relex": {"coefficients": [1, 4]}}}, {"write_config": 1, **RELEX}),
    "one more": (
        {"predictions": {"expo": {"run": "opd", "method": "expo", "gate": {"examples": 8}}}},
        {"write_config": 1, **TABLES, "predict_weights": 6, "evaluate_prediction": 6},
    ),
    "more steps": (
        {"training": {"steps": 8}},
        {
            "train_segment": 6, "evaluate": 6, "evaluate_candidates": 4, "select_candidate": 4, "collect_run": 6,
            "validate_state": 2, "predict_weights": 4, "evaluate_prediction": 4, "write_config": 1, **TABLES,
        },
    ),
    "evaluation.samples": (
        {"evaluation": {"samples": 2}},
        {
            "evaluate_model": 2, "evaluate": 18, "validate_state": 8, "predict_weights": 4, "evaluate_prediction": 8,
            "write_config": 1, **TABLES,
        },
    ),
}  # fmt: skip


def without_weights(planned):
    """Without the jobs on weights, which predictions do not touch (test_invalidation.py has them)."""
    others = {"analyze_weights", "evaluate_interventions", "make_dynamics_tables", "plot_weight_figure", "write_explorer",
              "compare_with_paper"}  # fmt: skip
    return {rule: count for rule, count in planned.items() if rule not in others}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_key_reruns_exactly_the_predictions_that_depend_on_it(predicted, tmp_path, change):
    overlay, expected = CHANGES[change]
    path = tmp_path / "overlay.yaml"
    path.write_text(json.dumps(overlay))
    assert without_weights(predicted.planned("--configfile", str(path))) == expected


MODULES = {
    "extrapolation/predictors.py": BOTH,
    "stages/predict_weights.py": BOTH,
    "integrations/gates.py": {},
}


@pytest.mark.parametrize("module", MODULES)
def test_a_changed_module_predicts_again_and_trains_nothing(predicted, tmp_path, module):
    sources = shutil.copytree(ROOT / "src", tmp_path / "src")
    with (sources / "effopd" / module).open("a") as file:
        file.write("\nCHANGED = True\n")
    edited = Workflow(predicted.folder, predicted.config, environment={"PYTHONPATH": str(sources)})
    assert edited.planned() == MODULES[module]


FILES = {
    "runs/effopd/seed0/state/2/state.json": (2, 2),  # behind the predictions at steps 2 and 4
    "validation/opd/seed1/4.json": (1, 1),
}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_predicted_from_again(copy, name):
    time.sleep(0.01)  # a later time stamp
    path = copy.path(name)
    path.write_text(path.read_text() + " ")
    planned = copy.planned()
    assert (planned.get("predict_weights", 0), planned["evaluate_prediction"]) == FILES[name]


def test_they_are_verified_and_counted_and_their_weights_pruned(copy):
    verified = effopd(copy, "verify", "--configfile", "config/config.yaml")
    assert "are whole" in verified
    assert "predictions 8/8, dynamics" in effopd(copy, "status")
    said = effopd(copy, "prune", "--apply")
    assert "weights of predictions that are evaluated" in said
    assert not list(copy.path("predictions").glob("**/weights.safetensors"))
    assert "of their files were pruned" in effopd(copy, "verify", "--configfile", "config/config.yaml")
    assert copy.planned() == {}
    copy.path("evaluation/relex/seed0/4.json").unlink()
    output = copy.run(status=1)
    assert "weights.safetensors was pruned (weights of predictions that are evaluated, " in output
    assert "delete results/predictions/relex/seed0/4/prediction.json and run the workflow again" in output


def test_compare_puts_them_side_by_side_like_runs(predicted, copy, tmp_path):
    table, other = tmp_path / "values.csv", str(predicted.path("."))
    said = effopd(copy, "compare", other, "results", "--out", str(table))
    for name in PREDICTIONS:
        own = said.split(f"\n\n{name} (seeds 0, 1; last common step 4)\n")[1].split("\n\n")[0]
        assert "accuracy and reverse KL: the same at steps 2, 4" in own
        assert "weights: bitwise the same at 4 of 4 predictions" in own
    values = pd.read_csv(table)
    evaluation = pd.read_csv(predicted.path("tables/evaluation.csv")).set_index(["run", "seed", "step"])
    own = values[values["run"].isin(PREDICTIONS)]
    assert len(own) == 2 * 2 * 2 * len(values["metric"].unique())
    for row in own.to_dict("records"):
        wanted = evaluation.loc[(row["run"], row["seed"], row["step"]), row["metric"]]
        assert row["a"] == row["b"] == pytest.approx(wanted, rel=1e-5, abs=1e-12), row

    config = yaml.safe_load(copy.path("config.yaml").read_text())
    del config["predictions"]["relex"]
    copy.path("config.yaml").write_text(yaml.safe_dump(config))
    copy.path("evaluation/alpha/seed1/4.json").unlink()
    copy.path("predictions/alpha/seed0/4/prediction.json").unlink()
    said = effopd(copy, "compare", other, "results")
    assert "runs only in A: relex" in said
    assert "B: results (unfinished: it lacks 1 of its predictions, 1 of its evaluations)" in said
    assert "weights: bitwise the same at 3 of 3 predictions" in said


def test_predicted_weights_are_exported_as_a_model(copy, tmp_path):
    asked = ("export", "--run", "relex", "--seed", "1", "--step")
    effopd(copy, *asked, "4", "--out", str(tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    predicted = load_file(copy.path("predictions/relex/seed1/4/weights.safetensors"))
    assert all(torch.equal(tensor, predicted[name]) for name, tensor in model.named_parameters())
    said = effopd(copy, *asked, "1", "--out", str(tmp_path / "none"), status=2)
    assert said.endswith("prediction.json does not exist. Kept steps of this run and seed: [2, 4].\n")


def test_what_a_prediction_was_made_from_is_checked(copy):
    path = copy.path("validation/opd/seed0/2.json")
    entry = json.loads(path.read_text())
    entry["spec"]["evaluation"]["seed"] = 1
    path.write_text(json.dumps(entry))
    copy.path("predictions/relex/seed0/4/prediction.json").unlink()
    command = [str(Path(sys.executable).with_name("effopd")), "verify"]
    said = subprocess.run(command, cwd=copy.folder, capture_output=True, text=True).stderr
    assert "validation/opd/seed0/2.json: its fingerprint" in said
    assert "evaluation/relex/seed0/4.json was made from a state with fingerprint" in said
    assert "predictions/alpha/seed0/2/prediction.json was made from a validation 2 with fingerprint" in said
