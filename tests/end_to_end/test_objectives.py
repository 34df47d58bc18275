"""Objectives whose scores hold more than the sampled tokens' log-probabilities, in one job or in many."""

from pathlib import Path

import pandas as pd
import pytest
from safetensors.numpy import load_file

from workflow_runs import Workflow, effopd

pytestmark = pytest.mark.slow

OBJECTIVES = {
    "exopd": {"reward_scale": 1.25},
    "top_k": {"support": "top_k", "top_k": 5},
    "full": {"support": "full", "divergence": "js"},
}


def run(folder: Path, mode: str, shards: int) -> Workflow:
    workflow = Workflow(folder)
    workflow.config |= {"seeds": [0], "execution": {"mode": mode, "shards": shards}}
    workflow.config["runs"] = {name: {"training": {"objective": section}} for name, section in OBJECTIVES.items()}
    workflow.config["extrapolation"] = {"triggers": "none"}
    workflow.config["training"] |= {"batch_size": 3, "steps": 1, "horizon": {"tokens": 4}}
    workflow.config["evaluation"]["baseline"] = "top_k"
    workflow.run("--until", "collect_run")
    return workflow


def test_staged_artifacts_of_every_objective_are_bitwise_the_colocated_ones(tmp_path):
    colocated = run(tmp_path / "colocated", "colocated", 1)
    staged = run(tmp_path / "staged", "staged", 2)
    ours, theirs = staged.contents(), colocated.contents()
    compared = [name for name in theirs if "/runs/" in name and not name.endswith("cost.parquet")]
    assert {name: ours[name] for name in compared} == {name: theirs[name] for name in compared}
    assert len(compared) > 3 * 8
    columns = {
        name: set(load_file(colocated.path(f"runs/{name}/seed0/scores/step1.safetensors"))) for name in OBJECTIVES
    }
    always = {"lengths", "logprobs"}
    assert columns == {
        "exopd": {*always, "reference_logprobs"},
        "top_k": {*always, "top_ids", "top_logprobs"},
        "full": {*always, "hidden_states"},
    }
    for name in OBJECTIVES:  # all start from the same weights, and on rollouts cut at 4 tokens
        metrics = pd.read_parquet(colocated.path(f"runs/{name}/seed0/metrics.parquet"))
        assert (
            metrics["reverse_kl"][0]
            == pd.read_parquet(colocated.path("runs/top_k/seed0/metrics.parquet"))["reverse_kl"][0]
        )
        assert metrics["completion_length"][0] <= 4
        cost = pd.read_parquet(colocated.path(f"runs/{name}/seed0/cost.parquet"))
        assert cost["scored_tokens"].sum() == metrics["tokens"][0] * (2 if name == "exopd" else 1)
    # Trained, nobody asks for them again, and the wide ones go.
    colocated.run("results/config.yaml")
    effopd(colocated, "prune", "--apply")
    colocated.run("--until", "collect_run")  # has nothing to make anew
    there = {name for name in OBJECTIVES if colocated.path(f"runs/{name}/seed0/scores/step1.safetensors").exists()}
    assert there == {"exopd"}
    assert "(2 of their files were pruned)" in effopd(colocated, "verify")
