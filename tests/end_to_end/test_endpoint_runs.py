"""A whole workflow whose teacher is scored by a real server on the loopback, against the same run scored locally."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from effopd.data.rollouts import Rollouts
from effopd.models.models import load_frozen, load_tensors, load_tokenizer, special_ids
from effopd.teachers.scoring import LocalTeacher, Scores
from workflow_runs import BEFORE_STUDENTS, effopd

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from teacher_server import Behavior, serving

pytestmark = pytest.mark.slow
STEPS = (1, 2, 3, 4)
PASSWORD = "open-sesame"


@pytest.fixture(scope="module")
def scored_elsewhere(undisturbed, tmp_path_factory):
    """The run `opd` of the tiny experiment, begun with its models, and the server that scored it. Not to be changed."""
    workflow = undisturbed.copy(tmp_path_factory.mktemp("scored-elsewhere"), *BEFORE_STUDENTS)
    workflow.config |= {"runs": {"opd": workflow.config["runs"]["opd"]}, "seeds": [0], "dynamics": {"enabled": False}}
    workflow.config["training"]["scored_by"] = "endpoint"
    folder = workflow.path("models/teacher")
    behavior = Behavior(load_frozen(folder, torch.device("cpu")), load_tokenizer(folder))
    behavior.failures = [503, 0]  # it is busy, and then loses a connection
    with serving(behavior) as url:
        address = url.replace("//", f"//me:{PASSWORD}@")
        endpoint = {"url": address, "model": "teacher", "backoff": 0.01, "concurrency": 4}
        workflow.config["runtime"]["endpoints"] = {"teacher": endpoint}
        workflow.run()
    return workflow, behavior


def test_a_run_scored_by_a_server_is_the_run_scored_locally_to_rounding(scored_elsewhere, undisturbed):
    workflow, behavior = scored_elsewhere
    assert behavior.completions >= 8 * len(STEPS), "every rollout was sent"
    assert not behavior.failures
    run = "runs/opd/seed0"
    folder = workflow.path("models/teacher")
    _, pad_id = special_ids(load_tokenizer(folder))
    teacher, tokens = LocalTeacher(load_frozen(folder, torch.device("cpu")), pad_id=pad_id, batch_size=4), []
    for step in STEPS:
        rollouts = Rollouts.read(workflow.path(f"{run}/rollouts/step{step}.parquet"))
        served = Scores.read(workflow.path(f"{run}/scores/step{step}.safetensors"))
        for mine, theirs in zip(teacher.score(rollouts).logprobs, served.logprobs, strict=True):
            np.testing.assert_allclose(theirs, mine, atol=1e-5)
        tokens.append(rollouts.completion_tokens)

    # the untrained student writes the same; then rounding decides part of AdamW's first steps, and a token may differ
    here, there = (Rollouts.read(w.path(f"{run}/rollouts/step1.parquet")) for w in (undisturbed, workflow))
    assert here.completions == there.completions
    here, there = (pd.read_parquet(w.path(f"{run}/metrics.parquet")).loc[:0] for w in (undisturbed, workflow))
    for column in ("loss", "gradient_norm", "reverse_kl"):
        np.testing.assert_allclose(there[column], here[column], rtol=0.01, atol=1e-4)
    base = load_tensors(workflow.path("models/base/model.safetensors"))
    local, served = (load_tensors(w.path(f"{run}/state/1/weights.safetensors")) for w in (undisturbed, workflow))
    moved = sum(float((local[name] - base[name]).square().sum()) for name in base) ** 0.5
    apart = sum(float((local[name] - served[name]).square().sum()) for name in base) ** 0.5
    assert 0 < apart < 0.1 * moved, "equal to the last bit: did the server score it?"

    evaluation = pd.read_csv(workflow.path("tables/evaluation.csv")).set_index("run").loc["opd"].sort_values("step")
    scored = dict(zip(evaluation["step"], evaluation["scored_tokens"], strict=True))
    assert scored == {step: sum(tokens[:step]) for step in scored}


def test_the_servers_password_is_written_nowhere(scored_elsewhere):
    workflow, _ = scored_elsewhere
    config = workflow.folder / "config/config.yaml"
    assert PASSWORD in config.read_text()
    files = [path for path in workflow.folder.rglob("*") if path.is_file() and path != config]
    assert any(path.suffix == ".log" for path in files)
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []


def test_it_is_looked_after_without_the_server(scored_elsewhere, tmp_path):
    """Nothing asks a server that has ended for what is there."""
    workflow = scored_elsewhere[0].copy(tmp_path)
    assert workflow.path("report.html").is_file()
    assert workflow.planned() == {}
    assert " artifacts of results are whole" in effopd(workflow, "verify", "--configfile", "config/config.yaml")
    workflow.config["runtime"]["endpoints"]["teacher"] |= {"url": f"http://me:{PASSWORD}@127.0.0.1:9/v1", "retries": 0}
    assert workflow.planned() == {}, "where it is served is no part of the results"
    workflow.path("runs/opd/seed0/state/4/state.json").unlink()
    (workflow.path("runs/opd/seed0/scores") / "step4.json").unlink()
    output = workflow.run("results/runs/opd/seed0/state/4/state.json", status=1)
    assert "error: the teacher's server at http://127.0.0.1:9/v1 did not answer in 1 attempt" in output
    assert "Traceback" not in output
    assert PASSWORD not in output
