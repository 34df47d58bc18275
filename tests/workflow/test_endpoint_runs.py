"""A whole workflow whose teacher is scored by a real server on the loopback, against the same run scored locally."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from workflow_runs import BEFORE_STUDENTS, effopd

from effopd.models import load_frozen, load_tensors, load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from teacher_server import Behaviour, serving

pytestmark = pytest.mark.slow
STEPS = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def scored_elsewhere(undisturbed, tmp_path_factory):
    """The run `opd` of the tiny experiment, begun with its models, and the server that scored it. Not to be changed."""
    workflow = undisturbed.copy(tmp_path_factory.mktemp("scored-elsewhere"), *BEFORE_STUDENTS)
    workflow.config |= {"runs": {"opd": workflow.config["runs"]["opd"]}, "seeds": [0], "dynamics": {"enabled": False}}
    workflow.config["training"]["scored_by"] = "endpoint"
    folder = workflow.path("models/teacher")
    behaviour = Behaviour(load_frozen(folder, torch.device("cpu")), load_tokenizer(folder))
    behaviour.failures = [503, 0]  # it is busy, and then loses a connection
    with serving(behaviour) as url:
        endpoint = {"url": url, "model": "teacher", "backoff": 0.01, "concurrency": 4}
        workflow.config["runtime"]["endpoints"] = {"teacher": endpoint}
        workflow.run()
    return workflow, behaviour


def test_a_run_scored_by_a_server_is_the_run_scored_locally_to_rounding(scored_elsewhere, undisturbed):
    workflow, behaviour = scored_elsewhere
    assert behaviour.completions >= 8 * len(STEPS), "every rollout was sent"
    assert not behaviour.failures
    run = "runs/opd/seed0"
    for step in STEPS:
        here, there = (pd.read_parquet(w.path(f"{run}/rollouts/step{step}.parquet")) for w in (undisturbed, workflow))
        assert [list(tokens) for tokens in here["completions"]] == [list(tokens) for tokens in there["completions"]]
        mine, theirs = (load_tensors(w.path(f"{run}/scores/step{step}.safetensors")) for w in (undisturbed, workflow))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            np.testing.assert_allclose(theirs[name].numpy(), tensor.numpy(), atol=1e-5)
    here, there = (pd.read_parquet(w.path(f"{run}/metrics.parquet")) for w in (undisturbed, workflow))
    for column in ("loss", "gradient_norm", "reverse_kl"):
        np.testing.assert_allclose(there[column], here[column], rtol=0.01, atol=1e-4)
    base = load_tensors(workflow.path("models/base/model.safetensors"))
    local, served = (load_tensors(w.path(f"{run}/state/4/weights.safetensors")) for w in (undisturbed, workflow))
    moved = sum(float((local[name] - base[name]).square().sum()) for name in base) ** 0.5
    apart = sum(float((local[name] - served[name]).square().sum()) for name in base) ** 0.5
    # the teacher of this experiment is close to its base: rounding decides part of AdamW's first steps
    assert 0 < apart < 0.1 * moved, "equal to the last bit: did the server score it?"
    here, there = (
        pd.read_csv(w.path("tables/evaluation.csv")).set_index(["run", "seed", "step"]).sort_index().loc["opd", 0]
        for w in (undisturbed, workflow)
    )
    assert there["accuracy"].tolist() == here["accuracy"].tolist()
    np.testing.assert_allclose(there["reverse_kl"], here["reverse_kl"], rtol=0.03, atol=1e-6)
    assert there["scored_tokens"].tolist() == here["scored_tokens"].tolist()


def test_it_is_looked_after_without_the_server(scored_elsewhere, tmp_path):
    """Nothing asks a server that has ended for what is there."""
    workflow = scored_elsewhere[0].copy(tmp_path)
    assert workflow.path("report.html").is_file()
    assert workflow.planned() == {}
    assert " artifacts of results are whole" in effopd(workflow, "verify", "--configfile", "config/config.yaml")
    workflow.config["runtime"]["endpoints"]["teacher"] |= {"url": "http://127.0.0.1:9/v1", "retries": 0}
    assert workflow.planned() == {}, "where it is served is no part of the results"
    workflow.path("runs/opd/seed0/state/4/state.json").unlink()
    (workflow.path("runs/opd/seed0/scores") / "step4.json").unlink()
    output = workflow.run("results/runs/opd/seed0/state/4/state.json", status=1)
    assert "error: the teacher's server at http://127.0.0.1:9/v1 did not answer in 1 attempts" in output
    assert "Traceback" not in output
