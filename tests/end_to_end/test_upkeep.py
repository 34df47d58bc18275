"""Looking after results: verify, prune, status and compare on real runs of the tiny experiment."""

import copy as copying
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from effopd.artifacts.locks import claim_results, exclusive
from effopd.artifacts.manifest_format import seal
from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.results.status import status
from effopd.workflow.snakemake_log import events_beside
from workflow_runs import BEFORE_STUDENTS, Workflow, effopd

pytestmark = pytest.mark.slow


def lacking(before, after):
    return sorted(name.removeprefix("results/runs/") for name in before.keys() - after.keys())


def without_records(contents):
    return {name: digest for name, digest in contents.items() if not name.endswith(".pruned.json")}


def test_pruned_results_are_up_to_date_verified_and_can_be_extended(copy, undisturbed, tmp_path_factory):
    before = copy.contents()
    said = effopd(copy, "prune")
    assert re.search(r"^optimizer moments before the last 2 triggers +6 +828 kB$", said, re.MULTILINE), said
    assert "Nothing was deleted" in said
    assert copy.contents() == before

    assert re.search(r"^total +6 +828 kB$", effopd(copy, "prune", "--apply"), re.MULTILINE)
    after = copy.contents()
    runs = [(run, seed) for run in ("effopd", "line", "opd") for seed in (0, 1)]
    assert lacking(before, after) == [f"{run}/seed{seed}/state/1/optimizer.safetensors" for run, seed in runs]
    assert {name: after[name] for name in before if name in after} == {n: d for n, d in before.items() if n in after}
    assert re.search(
        r"\d+ artifacts .* are whole, .*\(6 of their files were pruned\)\.$", effopd(copy, "verify").strip()
    )
    assert copy.planned() == {}
    assert re.search(r"^total +0 +0 B$", effopd(copy, "prune"), re.MULTILINE)

    longer = undisturbed.copy(tmp_path_factory.mktemp("longer"))
    for workflow in (copy, longer):
        workflow.config["training"]["steps"] = 8
        assert workflow.planned()["train_segment"] == 6
        workflow.run()
    whole, pruned = longer.contents(), without_records(copy.contents())
    assert pruned == {name: digest for name, digest in whole.items() if name in pruned}
    assert len(lacking(whole, pruned)) == 6
    assert "(6 of their files were pruned)" in effopd(copy, "verify")
    effopd(copy, "prune", "--optimizers", "1", "--apply")
    kept = sorted(path.parent.name for path in copy.path("runs/effopd/seed0/state").glob("*/optimizer.safetensors"))
    assert kept == ["8"]
    assert copy.planned() == {}


def test_a_job_that_needs_what_was_pruned_says_how_to_have_it_back(copy):
    before = copy.contents()
    effopd(copy, "prune", "--apply")
    copy.config["runs"]["effopd"]["extrapolation"] = {"coefficients": [0.5], "gate": {"metric": "always"}}
    output = copy.run(status=1)
    assert "Traceback" not in output
    assert "seed0/state/1/optimizer.safetensors was pruned (optimizer moments before the last 2 triggers, " in output
    remedy = "To have it back, delete results/runs/effopd/seed0/state/1/state.json and run the workflow again"
    assert remedy in output
    for seed in (0, 1):
        copy.path(f"runs/effopd/seed{seed}/state/1/state.json").unlink()
    copy.run()
    assert copy.planned() == {}
    after = copy.contents()
    for seed in (0, 1):
        name = f"results/runs/effopd/seed{seed}/state/1/optimizer.safetensors"
        assert after[name] == before[name]
        assert not copy.path(f"runs/effopd/seed{seed}/state/1/state.pruned.json").exists()
    assert "(4 of their files were pruned)" in effopd(copy, "verify")


@pytest.fixture
def finished_staged(undisturbed, finished) -> Workflow:
    """The tiny experiment in staged execution with two shards, smaller still. Not to be changed: copy it."""

    def make(folder: Path) -> Workflow:
        workflow = undisturbed.copy(folder, *BEFORE_STUDENTS)
        workflow.config |= {"execution": {"mode": "staged", "shards": 2}, "seeds": [0]}
        workflow.config["training"]["batch_size"] = 4
        workflow.config["runs"] = {name: workflow.config["runs"][name] for name in ("opd", "effopd")}
        return workflow

    return finished("staged", make)


@pytest.fixture
def staged(finished_staged, tmp_path) -> Workflow:
    return finished_staged.copy(tmp_path)


def freed(said):
    """How many files each clause of the policy frees."""
    return {
        clause: int(files) for clause, files in re.findall(r"^(\w[\w ]+?)  +(\d+)  +[\d.]+ \w+$", said, re.MULTILINE)
    }


def test_what_staged_execution_leaves_behind_is_freed(staged):
    """It frees merged shards and, two steps later, states between kept ones by itself; the last such state stays."""
    before = staged.contents()
    assert "(32 of their files were pruned)" in effopd(staged, "verify")
    said = effopd(staged, "prune", "--apply")
    assert freed(said) == {
        "optimizer moments before the last 2 triggers": 2,
        "states between kept ones": 4,
        "shards of steps that are put together": 0,
        "wide scores of trained steps": 0,
        "weights of predictions that are evaluated": 0,
        "resume points of finished jobs": 0,
        "unfinished writes of dead jobs": 0,
        "total": 6,
    }
    heavy = ("weights.safetensors", "optimizer.safetensors")
    expected = {f"{run}/seed0/state/3/{name}" for run in ("opd", "effopd") for name in heavy}
    expected |= {f"{run}/seed0/state/1/optimizer.safetensors" for run in ("opd", "effopd")}
    assert set(lacking(before, staged.contents())) == expected
    assert staged.planned() == {}
    assert "(38 of their files were pruned)" in effopd(staged, "verify")

    staged.config["training"]["steps"] = 8
    staged.run()
    assert staged.planned() == {}
    assert "(78 of their files were pruned)" in effopd(staged, "verify")
    assert freed(effopd(staged, "prune", "--apply"))["total"] == 2 + 4
    states = {
        path.parent.name: {p.name for p in path.parent.iterdir()}
        for path in staged.path("runs/opd/seed0").glob("state/*/state.json")
    }
    assert {step for step, names in states.items() if "optimizer.safetensors" in names} == {"4", "8"}
    assert {step for step, names in states.items() if "weights.safetensors" in names} == {"1", "2", "4", "8"}
    assert staged.planned() == {}


def test_a_pruned_state_between_kept_ones_can_be_had_back(staged):
    before = staged.contents()
    effopd(staged, "prune", "--apply")
    run = staged.path("runs/effopd/seed0")
    (run / "state/4/state.json").unlink()
    output = staged.run(status=1)
    assert "state/3/weights.safetensors was pruned (states between kept ones, " in output
    assert "To have it back, delete results/runs/effopd/seed0/state/3/state.json and run the workflow again" in output
    assert "Traceback" not in output
    (run / "state/3/state.json").unlink()
    staged.run()
    assert staged.planned() == {}
    after = without_records(staged.contents())
    assert {name: after[name] for name in before if name in after} == {n: d for n, d in before.items() if n in after}
    assert "results/runs/effopd/seed0/state/3/weights.safetensors" in after

    assert not lacking(after, before), "the shards made again for it are freed again"


def test_what_kills_leave_behind_is_freed(copy):
    weights = copy.path("runs/opd/seed0/state/4/weights.safetensors")
    resumes = [weights.with_name("resume.safetensors"), copy.path("models/teacher/resume.safetensors")]
    unfinished = copy.path("runs/opd/seed0/state/9/resume.safetensors")  # of a job that is still to go on
    unfinished.parent.mkdir()
    for path in (*resumes, unfinished):
        shutil.copy(weights, path)
    part = copy.path("tables/.summary.csv.abc123.part")
    part.write_text("cut sh")
    effopd(copy, "prune")
    said = effopd(copy, "prune", "--apply")
    assert re.search(r"^resume points of finished jobs +2 +\d", said, re.MULTILINE), said
    assert re.search(r"^unfinished writes of dead jobs +1 +6 B", said, re.MULTILINE), said
    assert [path.exists() for path in (*resumes, part, unfinished)] == [False, False, False, True]
    assert copy.planned() == {}


def test_a_state_whose_successor_is_missing_keeps_its_optimizer(copy):
    shutil.rmtree(copy.path("runs/effopd/seed0/state/2"))
    effopd(copy, "prune", "--apply")
    assert copy.path("runs/effopd/seed0/state/1/optimizer.safetensors").is_file()
    assert not copy.path("runs/effopd/seed1/state/1/optimizer.safetensors").exists()
    copy.run("results/runs/effopd/seed0/state/2/state.json")


def test_a_state_that_snakemake_makes_again_counts_as_missing(copy):
    """After a kill between a manifest and Snakemake's note that its job is over, the job is done again."""
    log = copy.folder / json.loads(copy.path(".workflow.lock").read_text())["log"]
    events = events_beside(log).read_text()
    started = [line for line in events.splitlines() if line.startswith('{"started"')]
    again = next(line for line in started if '["results/runs/opd/seed0/state/4/state.json"]' in line)
    events_beside(log).write_text(f"{events}{again}\n")
    effopd(copy, "prune", "--optimizers", "1", "--apply")
    kept = {seed: copy.path(f"runs/opd/seed{seed}/state").glob("*/optimizer.safetensors") for seed in (0, 1)}
    assert {path.parent.name for path in kept[0]} == {"2", "4"}
    assert {path.parent.name for path in kept[1]} == {"4"}
    copy.path("runs/opd/seed0/state/4/state.json").unlink()
    copy.run("results/runs/opd/seed0/state/4/state.json")


def test_nothing_is_pruned_while_something_works_on_the_results(copy):
    before = copy.contents()
    with claim_results(copy.path(".")):
        refused = effopd(copy, "prune", "--apply", status=2)
        assert re.search(r"error: another workflow \(process \d+, since .*\) is working on results", refused)
        effopd(copy, "prune")
    with exclusive(copy.path("runs/opd/seed0/state/4")):
        refused = effopd(copy, "prune", "--apply", status=2)
        assert "a job whose workflow has ended is still writing results/runs/opd/seed0/state/4" in refused
    assert copy.contents() == before


COUNTS = {"states": "train_segment", "triggers": "select_candidate", "evaluations": "evaluate"}


def test_status_of_a_finished_experiment(undisturbed):
    found = status(undisturbed.path("."))
    assert found["workflow"] == {"running": False, "pid": None, "since": None, "jobs_done": 104, "jobs": 104}
    assert found["models"] == [
        {"model": "base", "kind": "pretrain", "trained": "yes", "evaluated": "yes"},
        {"model": "teacher", "kind": "grpo", "trained": "yes", "evaluated": "yes"},
    ]
    assert {row["run"]: row["triggers"] for row in found["runs"]} == {"opd": [0, 0], "effopd": [3, 3], "line": [3, 3]}
    for row in found["runs"]:
        assert (row["steps"], row["states"], row["evaluations"], row["out_of_date"]) == ([4, 4], [3, 3], [3, 3], 0)
    assert found["products"] == {"dynamics": [8, 8], "tables": [11, 11], "figures": [15, 15], "report": [1, 1]}
    assert (found["running"], found["failed"], found["seconds_left"]) == ([], [], None)
    said = effopd(undisturbed, "status")
    assert json.loads(effopd(undisturbed, "status", "--json")) == {**found, "results": "results"}
    assert "results: no workflow is running\n" in said
    assert re.search(r"^all +24/24 +18/18 +12/12 +18/18 +-$", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize(
    ("section", "value", "outdated"),  # counted by hand; what is missing is not out of date
    [
        ("runs.opd", {"training": {"lr": 1.0e-3}, "extrapolation": {"triggers": "none"}}, 12),
        ("runs.effopd", {"extrapolation": {"gate": {"samples": 2}}}, 16),
        ("runs.effopd", {"extrapolation": {"triggers": [1, 4]}}, 8),
        ("runs.opd", {"extrapolation": {"triggers": [1]}}, 10),
        ("training", {"steps": 8}, 0),
        ("seeds", [0, 2], 0),
        ("evaluation", {"samples": 2}, 18),
    ],
)
def test_status_counts_as_out_of_date_what_the_workflow_would_make_anew(copy, section, value, outdated):
    *parents, last = section.split(".")
    place = copy.config = copying.deepcopy(copy.config)
    for parent in parents:
        place = place[parent]
    place[last] = {**place.get(last, {}), **value} if isinstance(value, dict) else value
    copy.run("results/config.yaml")
    found, planned = status(copy.path(".")), copy.planned()
    for kind, rule in COUNTS.items():
        assert sum(row[kind][1] - row[kind][0] for row in found["runs"]) == planned.get(rule, 0), kind
    assert sum(row["out_of_date"] for row in found["runs"]) == outdated


def test_status_counts_the_steps_of_a_segment_that_is_not_finished(copy):
    run = copy.path("runs/opd/seed0")

    def steps():
        rows = status(copy.path("."))["runs"]
        return next(row["steps"] for row in rows if (row["run"], row["seed"]) == ("opd", 0))

    assert steps() == [4, 4]
    (run / "state/4/state.json").unlink()
    assert steps() == [4, 4], "the scores of step 4 are there"
    (run / "scores/step4.json").unlink()
    assert steps() == [3, 4]
    scores = read_manifest(run / "scores/step3.json")
    write_manifest(scores.path, kind="scores", spec={**scores.spec, "seed": 5}, parents=scores.parents, started=0.0)
    assert steps() == [2, 4], "scores of something else do not count"


def test_status_of_staged_execution(finished_staged):
    found = status(finished_staged.path("."))
    assert {row["run"]: row["triggers"] for row in found["runs"]} == {"opd": [0, 0], "effopd": [3, 3]}
    for row in found["runs"]:
        assert (row["steps"], row["states"], row["evaluations"], row["out_of_date"]) == ([4, 4], [3, 3], [3, 3], 0)


def test_status_of_a_running_workflow_and_of_its_failed_jobs(tmp_path):
    workflow = Workflow(tmp_path)
    workflow.config["runs"] = {
        "opd": {"training": {"lr": 1.0e30}, "extrapolation": {"triggers": "none"}},
        "effopd": {},
    }
    workflow.config["training"]["steps"] = 8
    process = workflow.start()
    begun, told, seen, estimates = time.monotonic(), [], set(), []
    while process.poll() is None:
        assert time.monotonic() - begun < 300
        if (tmp_path / "results/config.yaml").is_file():
            found = status(tmp_path / "results")
            if found["workflow"]["running"]:
                assert found["workflow"]["pid"] == process.pid
                told += found["failed"]
                seen |= {job["job"].split(" ")[0] for job in found["running"]}
                estimates.append(found["seconds_left"])
                assert sum(row["states"][0] for row in found["runs"]) <= found["workflow"]["jobs_done"]
        time.sleep(0.1)
    process.communicate()
    assert process.returncode == 1
    assert {"train_segment", "evaluate", "evaluate_candidates"} <= seen
    assert None in estimates
    left = [estimate for estimate in estimates if estimate is not None]
    assert left
    assert all(0 < estimate < 300 for estimate in left)
    assert [job["job"] for job in told], "failures are told while the rest goes on"
    found = status(tmp_path / "results")
    assert not found["workflow"]["running"]
    assert sorted(job["job"] for job in found["failed"]) == ["train_segment opd 0 2", "train_segment opd 1 2"]
    assert all("of optimizer step 2" in job["error"] and "Lower `lr`" in job["error"] for job in found["failed"])
    said = effopd(workflow, "status")
    assert re.search(r"no workflow is running; the last one ended early \(\d+ of \d+ jobs done\)", said)
    assert max(map(len, said.splitlines())) <= 100


def test_status_of_a_killed_workflow_shows_nothing_as_running(tmp_path):
    workflow = Workflow(tmp_path)
    assert "results/config.yaml does not exist: no workflow has begun in results" in effopd(
        workflow, "status", status=2
    )
    process = workflow.start()
    while not (tmp_path / "logs/train_segment").is_dir() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    found = status(tmp_path / "results")
    assert found["workflow"]["running"] is False
    assert 0 < found["workflow"]["jobs_done"] < found["workflow"]["jobs"] == 104
    assert (found["running"], found["failed"]) == ([], [])


def test_compare_tells_what_differs_and_by_how_much(undisturbed, copy, tmp_path_factory):
    copy.config["runs"]["opd"]["training"] = {"lr": 1.0e-3}
    copy.config["runs"]["other"] = copy.config["runs"].pop("line")
    copy.config["seeds"] = [1, 0]
    copy.run()
    table = tmp_path_factory.mktemp("compare") / "values.csv"
    said = effopd(copy, "compare", str(undisturbed.path(".")), "results", "--out", str(table))
    differing = said.split("\n\n")[1].splitlines()
    assert [line.split("  ")[0] for line in differing] == [
        "configuration", "seeds", "runs.opd.training.lr", "runs only in A: line", "runs only in B: other",
    ]  # fmt: skip
    assert re.fullmatch(r"runs\.opd\.training\.lr +\(absent\) +0\.001", differing[2])
    assert "code and versions: the same" in said
    assert "model teacher: bitwise the same weights" in said
    assert "opd (seeds 0, 1; last common step 4)" in said
    assert "weights: bitwise the same at 6 of 6 kept states" in said
    assert "weights: bitwise the same at 0 of 6 kept states" in said

    values = pd.read_csv(table)
    assert set(values["run"]) == {"opd", "effopd"}
    for side, workflow in (("a", undisturbed), ("b", copy)):
        evaluation = pd.read_csv(workflow.path("tables/evaluation.csv")).set_index(["run", "seed", "step"])
        for row in values.to_dict("records"):
            wanted = evaluation.loc[(row["run"], row["seed"], row["step"]), row["metric"]]
            assert row[side] == pytest.approx(wanted, rel=1e-5, abs=1e-12), row
    opd = values[(values["run"] == "opd") & (values["metric"] == "reverse_kl") & (values["step"] == 4)]
    shown = f"{opd['difference'].mean():+.4f}"
    assert re.search(rf"^4 .* {re.escape(shown)} \([-+0-9.]+ to [-+0-9.]+\)$", said, re.MULTILINE), said


def test_compare_says_what_is_missing_and_compares_the_rest(undisturbed, copy):
    for name in (
        "evaluation/effopd/seed1/2.json",
        "evaluation/effopd/seed1/4.json",
        "runs/line/seed0/state/2/state.json",
    ):
        copy.path(name).unlink()
    manifest = copy.path("models/base/manifest.json")
    entry = json.loads(manifest.read_text())
    entry["recorded"]["versions"]["torch"] = "9.9.9"
    manifest.write_text(json.dumps(seal(entry)))
    said = effopd(copy, "compare", str(undisturbed.path(".")), "results")
    assert "B: results (unfinished: it lacks 1 of its states, 2 of its evaluations)" in said
    assert "configuration: the same" in said
    assert re.search(r"^torch +2\S+ +2\S+, 9\.9\.9$", said, re.MULTILINE)
    assert "effopd (seeds 0, 1; last common step 1)" in said
    assert re.search(r"^4 \(seed 0\) .* 0$", said, re.MULTILINE)
    assert re.search(r"^generated tokens up to step 4: [\d,]+ in A, unknown in B$", said, re.MULTILINE)
    assert "weights: bitwise the same at 5 of 5 kept states" in said
    said = effopd(copy, "compare", "results", "logs", status=2)
    assert (
        said
        == "error: logs/config.yaml does not exist: no workflow has begun in logs. Run it, or name another folder.\n"
    )
