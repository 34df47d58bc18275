"""The local theory of a real run: what its rules make, from what, and what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from workflow_runs import Workflow

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workflow")]


def test_every_run_is_compared_with_the_local_theory(tmp_path):
    workflow = Workflow(tmp_path)
    workflow.config["seeds"] = [0]
    workflow.config["dynamics"]["local_theory"]["enabled"] = True
    workflow.config["models"]["teacher"] = {
        **workflow.config["models"]["base"],
        "steps": 60,
        "seed": 1,
    }  # there is much to learn
    tables = [f"results/tables/local_{name}.csv" for name in ("residuals", "eigenspace", "path", "gradient")]
    workflow.run(*tables)
    linearized = workflow.path("dynamics/models/base/linearized-teacher/manifest.json")
    facts = json.loads(linearized.read_text())["result"]
    assert facts["completions"] == 8
    residuals, eigenspace, path, gradient = (pd.read_csv(workflow.folder / table) for table in tables)
    assert set(residuals["kind"]) == {"logits", "weighted"}
    of_b = eigenspace[eigenspace["start"] == "b"]
    assert of_b["eigenvalue"].is_monotonic_decreasing
    assert of_b["cumulative_share"].iloc[-1] == pytest.approx(1)
    assert set(path["run"]) == {"opd", "effopd", "line"}
    assert set(path["seed"]) == {"0", "mean"}
    assert gradient["share"].between(0, 1).all()
    first = path[(path["step"] == 1) & (path["seed"] == "0") & (path["run"] == "opd")].iloc[0]
    assert first["cosine_to_gradient"] > 0.05, "the first update does not go down the gradient"
    assert first["reverse_kl"] < facts["reverse_kl"]
    assert first["quadratic_reverse_kl"] == pytest.approx(
        first["reverse_kl"] - facts["reverse_kl"] + facts["quadratic_reverse_kl"], abs=2e-3
    )
    # the weights compared are those that training goes on from, after an accepted jump
    decisions = {run: workflow.path(f"runs/{run}/seed0/extrapolation/1/decision.json") for run in ("effopd", "line")}
    jumps = {run: json.loads(decision.read_text())["result"]["coefficient"] for run, decision in decisions.items()}
    norms = path[(path["step"] == 1) & (path["seed"] == "0")].set_index("run")["observed_norm"]
    assert any(jumps.values()), "no jump was accepted: the test proves nothing"
    for run, coefficient in jumps.items():
        assert (norms[run] > norms["opd"]) == (coefficient > 0)
    assert workflow.planned(*tables) == {}
    verify = subprocess.run([Path(sys.executable).with_name("effopd"), "verify"], cwd=workflow.folder, check=False)
    assert verify.returncode == 0
    workflow.config["dynamics"]["local_theory"]["iterations"] = 7
    assert workflow.planned(*tables) == {
        "linearize_student": 1,
        "compare_local_theory": 3,
        "make_local_theory_tables": 1,
    }
