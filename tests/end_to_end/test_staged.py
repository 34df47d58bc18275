"""Staged execution writes what the colocated one does, bit for bit, however many shards and ranks there are."""

import json
from pathlib import Path
from typing import Any

import pytest

from every_step import EVERY_STEP
from workflow_runs import BEFORE_STUDENTS, Workflow, kill_and_resume

pytestmark = pytest.mark.slow

# What may differ: the setting itself, and what the gate cost (each coefficient is scored, asked for or not).
TABLES = tuple(f"tables/{name}.csv" for name in ("evaluation", "comparison", "summary"))
MAY_DIFFER = ("config.yaml", "cost.parquet", *TABLES)


def prepared(undisturbed: Workflow, folder: Path, mode: str, shards: int, **training: int) -> Workflow:
    workflow = undisturbed.copy(folder, *BEFORE_STUDENTS)
    workflow.config["seeds"] = [0]
    workflow.config["runs"] = {name: workflow.config["runs"][name] for name in ("opd", "effopd", "line")}
    workflow.config["runs"]["every"] = EVERY_STEP
    workflow.config["dynamics"] = {"enabled": False}
    workflow.config["training"] |= {"batch_size": 3, **training}
    workflow.config["execution"] = {"mode": mode, "shards": shards}
    return workflow


def run(*arguments: Any, **training: int) -> Workflow:
    workflow = prepared(*arguments, **training)
    workflow.run()
    return workflow


@pytest.fixture
def colocated(undisturbed, finished) -> Workflow:
    return finished("colocated", lambda folder: prepared(undisturbed, folder, "colocated", 1))


@pytest.mark.parametrize("shards", [1, 3])
def test_staged_artifacts_are_bitwise_the_colocated_ones(undisturbed, colocated, tmp_path, shards):
    staged = run(undisturbed, tmp_path, "staged", shards)
    ours, theirs = staged.contents(), colocated.contents()
    differing = [name for name in theirs if ours.get(name) != theirs[name] and not name.endswith(MAY_DIFFER)]
    assert not differing
    assert len(theirs) > 130
    for step in (1, 2, 4):
        name = f"runs/effopd/seed0/state/{step}/state.json"
        fingerprints = {json.loads(flow.path(name).read_text())["fingerprint"] for flow in (staged, colocated)}
        assert len(fingerprints) == 1, "the same artifact goes by two names"
    assert staged.planned() == {}


def test_two_ranks_train_alike_in_one_job_or_in_many(undisturbed, tmp_path):
    """Both packings share the work out by whole batches, and sum in the same order."""
    colocated = run(undisturbed, tmp_path / "colocated", "colocated", 1, num_processes=2, steps=2)
    staged = run(undisturbed, tmp_path / "staged", "staged", 3, num_processes=2, steps=2)
    ours, theirs = staged.contents(), colocated.contents()
    compared = [name for name in theirs if "/runs/" in name and not name.endswith(MAY_DIFFER)]
    assert len(compared) > 50
    assert {name: ours[name] for name in compared} == {name: theirs[name] for name in compared}


def test_every_candidate_is_paid_for_and_the_decision_reads_as_if_they_were_tried_in_turn(
    undisturbed, colocated, tmp_path
):
    staged = run(undisturbed, tmp_path, "staged", 1, steps=1)
    folder = "runs/effopd/seed0/extrapolation/1"
    decisions = [json.loads(flow.path(f"{folder}/decision.json").read_text()) for flow in (staged, colocated)]
    assert decisions[0]["result"] == decisions[1]["result"]
    paid = {row["coefficient"] for row in decisions[0]["recorded"]["cost"]}
    assert paid == {0, 2, 4, 6, 8, 10}
    assert sorted(path.stem for path in staged.path(f"{folder}/candidates").glob("*.json")) == sorted(
        ["0", "2", "4", "6", "8", "10"]
    )
    assert not staged.path("runs/line/seed0/extrapolation/1/candidates").exists(), "a line search is one job"


def test_a_killed_segment_that_jumps_after_every_step_goes_on_from_its_resume_point(colocated, tmp_path, monkeypatch):
    workflow = colocated.copy(tmp_path)
    contents = workflow.contents()
    kill_and_resume(workflow, "every", monkeypatch)
    assert workflow.contents() == contents
