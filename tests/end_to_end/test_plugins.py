"""A package of somebody else, installed, adds a task, an objective and a gate; what its code changes reruns."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from workflow_runs import Workflow

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).parents[1] / "helpers/plugin"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that the package is installed in."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PLUGIN, folder / "source")  # pip builds in it
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
    subprocess.run([sys.executable, "-m", *install, str(folder / "site"), str(source)], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def done(installed, tmp_path_factory) -> Workflow:
    workflow = Workflow(tmp_path_factory.mktemp("workflow"), environment={"PYTHONPATH": str(installed)})
    own = yaml.safe_load((PLUGIN / "experiment.yaml").read_text())
    training = {**workflow.config["training"], **own["training"]}
    workflow.config |= {**own, "training": training, "seeds": [0], "dynamics": {"enabled": False}}
    workflow.run()
    return workflow


def test_a_workflow_runs_with_them(done):
    corpus = pd.read_parquet(done.path("data/reversal/corpus.parquet"))
    assert (corpus["completion"] == corpus["prompt"].str[-2::-1]).mean() > 0.5
    metrics = pd.read_parquet(done.path("runs/skewed/seed0/metrics.parquet"))
    assert metrics["skewed_kl_value"].gt(0).all()
    for run in ("surprised", "of_rollouts"):
        result = json.loads(done.path(f"runs/{run}/seed0/extrapolation/1/decision.json").read_text())["result"]
        assert result["metric"] == "surprise"
        assert result["current"]["score"] == -result["current"]["value"]
        assert len(result["current"]["per_item"]) == 8
        assert result["trials"][0]["coefficient"] == (10 if run == "surprised" else 2)
    assert done.path("report.html").is_file()
    assert done.planned() == {}


TABLES = {"make_tables": 1, "plot_figure": 5, "write_report": 1}
FORWARD = {
    "evaluate_candidates": 3,
    "select_candidate": 3,
    "train_segment": 2,
    "evaluate": 3,
    "collect_run": 1,
}  # of a run
BOTH = {rule: 2 * count for rule, count in FORWARD.items()}
PREDICTED = {"predict_weights": 2, "evaluate_prediction": 2}
EDITS = {
    "gate.py": {**BOTH, **TABLES},
    "search.py": {**FORWARD, **TABLES},
    "objective.py": {"train_segment": 3, "evaluate": 3, "collect_run": 1, **TABLES},
    "predictor.py": {**PREDICTED, **TABLES},
    "task.py": {
        "make_data": 1, "pretrain_model": 1, "train_rl": 1, "tokenize_prompts": 2, "preflight": 1, "evaluate_model": 2,
        **BOTH, "train_segment": 12, "evaluate": 12, "collect_run": 4, **PREDICTED, **TABLES,
    },
    "surprise.schema.yaml": {},
}  # fmt: skip


@pytest.mark.parametrize("file", EDITS)
def test_a_change_in_the_package_reruns_exactly_what_depends_on_it(done, installed, file):
    path = installed / "effopd_reversal" / file
    text = path.read_text()
    try:
        path.write_text(text + "\n# A comment.\n")
        assert done.planned() == {}
        path.write_text(text + ("\nCHANGED = True\n" if path.suffix == ".py" else "title: In other words.\n"))
        assert done.planned() == EDITS[file]
    finally:
        path.write_text(text)


def test_without_the_package_its_names_are_unknown(done):
    output = Workflow(done.folder, done.config).run("--dry-run", status=1)
    assert "`task.name` is 'reversal'; it must be one of arithmetic, math, choice, code, reasoning_gym." in output
