"""A package of somebody else, installed, adds a task, an objective and a gate; what its code changes reruns."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from workflow_runs import Workflow

pytestmark = pytest.mark.slow
PLUGIN = Path(__file__).parents[1] / "helpers/plugin"

EXPERIMENT = {
    "task": {"name": "reversal", "splits": {"train": 200, "validation": 16, "test": 24}, "corpus": {"size": 400}},
    "seeds": [0],
    "dynamics": {"enabled": False},
    "runs": {
        "opd": {"extrapolation": {"triggers": "none"}},
        "skewed": {
            "training": {"objective": {"support": "top_k", "top_k": 5, "divergence": "skewed_kl", "skewed_kl": {"skew": 0.2}}},
            "extrapolation": {"triggers": "none"},
        },
        "surprised": {"extrapolation": {"gate": {"metric": "surprise"}}},
        "of_rollouts": {"extrapolation": {"gate": {"metric": "surprise", "source": "rollouts"}}},
    },
}  # fmt: skip


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
    workflow.config = {**workflow.config, **EXPERIMENT}
    workflow.run()
    return workflow


def test_a_workflow_runs_with_them(done):
    corpus = pd.read_parquet(done.path("data/reversal/corpus.parquet"))
    assert (corpus["completion"] == corpus["prompt"].str[-2::-1]).mean() > 0.5
    metrics = pd.read_parquet(done.path("runs/skewed/seed0/metrics.parquet"))
    assert metrics["skewed_kl_value"].gt(0).all()
    for run in ("surprised", "of_rollouts"):
        result = json.loads(done.path(f"runs/{run}/seed0/extrapolation/1/ledger.json").read_text())["result"]
        assert result["metric"] == "surprise"
        assert result["current"]["score"] == -result["current"]["value"]
        assert len(result["current"]["per_item"]) == 8
        assert result["trials"]
    assert done.path("report.html").is_file()
    assert done.planned() == {}


EVALUATED = {"make_tables": 1, "plot_figure": 6, "write_report": 1}
ONE_RUN = {"train_segment": 3, "evaluate": 3, "collect_run": 1, **EVALUATED}
GATES = {"evaluate_candidates": 6, "select_candidate": 6}
EDITS = {
    "gate.py": {**GATES, "train_segment": 4, "evaluate": 6, "collect_run": 2, **EVALUATED},
    "objective.py": ONE_RUN,
    "task.py": {
        "make_data": 1, "pretrain_model": 1, "train_rl": 1, "tokenize_prompts": 2, "preflight": 1, "evaluate_model": 2,
        "train_segment": 12, "evaluate": 12, "collect_run": 4, **GATES, **EVALUATED,
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
    assert "`task.name` is 'reversal'; it must be one of arithmetic, math, choice, code." in output
