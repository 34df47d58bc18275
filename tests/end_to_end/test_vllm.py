"""The workflow with vLLM as the engine of training, gate and evaluation, colocated and staged."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from workflow_runs import Workflow

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from vllm_here import needs_vllm

START_SECONDS = 1500  # each job imports and starts vLLM
pytestmark = needs_vllm("workflow")


def workflow_in(folder: Path) -> Workflow:
    """One step of a run that jumps there, with a model that vLLM's attention on CPUs takes."""
    workflow = Workflow(folder)
    workflow.config["models"]["base"]["head_dim"] = 32
    workflow.config["models"]["teacher"]["steps"] = 2
    workflow.config["training"] |= {"steps": 1, "engine": "vllm", "batch_size": 4}
    workflow.config["extrapolation"] = {"triggers": [1], "coefficients": [2], "gate": {"examples": 8}}
    workflow.config["runs"] = {"opd": {}}
    workflow.config["seeds"] = [0]
    workflow.config["evaluation"]["engine"] = "vllm"
    workflow.config["runtime"]["vllm"] = {"cpu_cache_gb": 0.25}
    return workflow


def test_colocated_training_of_two_ranks_a_gate_and_an_evaluation(tmp_path):
    """Each rank generates its share with an engine of its own."""
    workflow = workflow_in(tmp_path)
    workflow.config["training"]["num_processes"] = 2
    targets = ("results/runs/opd/seed0/extrapolation/1/decision.json", "results/evaluation/opd/seed0/1.json")
    workflow.run(*targets, timeout=START_SECONDS)
    metrics = pd.read_parquet(workflow.path("runs/opd/seed0/state/1/metrics.parquet")).iloc[0]
    assert 0 < metrics["logprob_difference"] < 1e-4, "equal to the last bit: was it vLLM?"
    assert metrics["importance_weight"] == pytest.approx(1, abs=1e-3)
    assert workflow.planned(*targets) == {}


def test_a_staged_step_generates_in_a_job_of_its_own(tmp_path):
    workflow = workflow_in(tmp_path)
    workflow.config["execution"] = {"mode": "staged"}
    workflow.run("results/runs/opd/seed0/state/1/state.json", timeout=START_SECONDS)
    metrics = pd.read_parquet(workflow.path("runs/opd/seed0/state/1/metrics.parquet"))
    assert (metrics["logprob_difference"] < 1e-4).all()
