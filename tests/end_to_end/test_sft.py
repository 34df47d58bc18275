"""Models that are fine-tuned in the workflow: on worked responses, and on a teacher's samples; then students of a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from effopd.data.responses import PARTS, SAMPLES
from effopd.results.prune import plan_pruning
from effopd.workflow.job_specs import Plan
from workflow_runs import Workflow

pytestmark = pytest.mark.slow

SFT = {"kind": "sft", "init": "base", "batch_size": 8, "lr": 1e-3}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Two models that are fine-tuned from one base, students of a run each: by responses, and by the other's samples."""
    workflow = Workflow(tmp_path_factory.mktemp("sft"))
    config = workflow.config
    sampling = {"from": "taught", "samples": 4, "max_new_tokens": 24, "batch_size": 64}
    config["models"] |= {
        "taught": {**SFT, "steps": 120, "lr": 5e-3},
        "cold": {**SFT, "steps": 4, "data": "samples", "sampling": sampling},
    }
    config["models"]["teacher"]["init"] = "taught"
    config["training"]["steps"] = 2
    config["runs"] = {"opd": {"training": {"student": "cold"}}, "more": {"training": {"student": "taught"}}}
    config["extrapolation"] = {"triggers": "none"}
    config["seeds"] = [0]
    config["dynamics"] = {"interventions": [], "local_theory": {"enabled": False}, "models": ["taught", "cold"]}
    workflow.run()
    return workflow


def test_they_are_trained_judged_looked_into_and_distilled(tuned):
    manifests = {name: json.loads(tuned.path(f"models/{name}/manifest.json").read_text())
                 for name in ("base", "taught", "cold", "teacher")}  # fmt: skip
    (sampled,) = tuned.path("samples").iterdir()
    samples = json.loads((sampled / "manifest.json").read_text())
    assert sampled.name.startswith("taught-")
    assert samples["parents"]["model"] == manifests["taught"]["fingerprint"]
    assert manifests["cold"]["parents"]["samples"] == samples["fingerprint"]
    assert manifests["cold"]["parents"]["init"] == manifests["base"]["fingerprint"]
    assert manifests["teacher"]["parents"]["init"] == manifests["taught"]["fingerprint"]
    assert 0 < manifests["cold"]["result"]["examples"] <= samples["result"]["solved_problems"] <= 64
    losses = pd.read_parquet(tuned.path("models/taught/training.parquet"))["loss"]
    assert losses.iloc[-10:].mean() < losses.iloc[:10].mean() / 2
    models = pd.read_csv(tuned.path("tables/models.csv"))
    assert set(models["model"]) == {"base", "teacher", "taught", "cold"}
    norms = pd.read_csv(tuned.path("tables/dynamics_norms.csv"))
    assert set(norms.loc[norms["run"] == "models/cold", "step"]) == {1, 2, 4}
    report = tuned.path("report.html").read_text()
    assert "cold" in report
    assert "taught (SFT)" in tuned.path("figures/norms.svg").read_text()


def test_everything_there_is_up_to_date_and_known(tuned):
    assert tuned.planned() == {}
    effopd = str(Path(sys.executable).with_name("effopd"))
    for command in (["verify", "--configfile", "config/config.yaml"], ["status"], ["prune"]):
        done = subprocess.run([effopd, *command], cwd=tuned.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        if command == ["status"]:
            lines = [line.split() for line in done.stdout.splitlines()]
            assert ["taught", "sft", "yes", "yes"] in lines
            assert ["cold", "sft", "yes", "yes"] in lines


def test_what_a_finished_sampling_left_of_its_parts_is_freed(tuned):
    results = tuned.folder / "results"
    (sampled,) = tuned.path("samples").iterdir()
    left = sampled / PARTS / "left.parquet"
    left.parent.mkdir()
    left.write_bytes(b"some")
    try:
        freed = plan_pruning(results, Plan.of_results(results), optimizers=2, parts=True)
        assert [path.name for clause in freed for path in clause.loose] == [left.name]
        assert not any(path.name == SAMPLES for clause in freed for path in clause.paths)
    finally:
        shutil.rmtree(left.parent)


STUDENT = {
    "tokenize_prompts": 1,
    "evaluate_model": 1,
    "preflight": 1,
    "train_segment": 2,
    "evaluate": 2,
    "collect_run": 1,
}


@pytest.mark.parametrize(
    ("model", "change", "expected"),
    [
        ("cold", {"lr": 2e-3}, {"train_sft": 1, **STUDENT}),
        ("cold", {"sampling": {"per_problem": 2}}, {"train_sft": 1, **STUDENT}),
        ("cold", {"sampling": {"temperature": 0.9}}, {"sample_responses": 1, "train_sft": 1, **STUDENT}),
        ("cold", {"lora": {"rank": 2}}, {"train_sft": 1, **STUDENT}),
    ],
    ids=str,
)
def test_a_changed_rate_retrains_and_samples_nothing_again(tuned, tmp_path, model, change, expected):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(json.dumps({"models": {model: change}}))
    planned = tuned.planned("--configfile", str(overlay))
    training = {rule: count for rule, count in planned.items() if rule in {*expected, "sample_responses", "train_rl"}}
    assert training == expected
