"""What looks after results: records of what was deleted, who works on a folder, what jobs do, and plain text."""

import errno
import fcntl
import json
import re
import time

import pytest

from effopd.artifacts.locks import claim_results, exclusive, held_folders, look_at_claim
from effopd.artifacts.manifests import read_manifest, release, write_manifest, write_text
from effopd.common.errors import ArtifactError, ConfigError, PrunedError
from effopd.common.formatting import aligned, duration_text, shortened, size_text
from effopd.common.progress import as_error, last_said
from effopd.results import prune as pruning
from effopd.training.checkpoints import OPTIMIZER, WEIGHTS
from effopd.workflow.job_specs import Plan
from effopd.workflow.snakemake_log import jobs_of


def make_state(folder, step, extra=""):
    """A state's manifest with two files of known content."""
    folder = folder / f"state/{step}"
    files = {name: folder / name for name in ("weights.safetensors", "optimizer.safetensors")}
    for path in files.values():
        write_text(path, f"{path.name} {step} {extra}")
    return write_manifest(
        folder / "state.json",
        kind="state",
        spec={"end": step, "x": extra},
        parents={},
        files=files,
        started=time.time(),
    )


def test_a_released_file_is_on_record_and_the_manifest_untouched(tmp_path):
    state = make_state(tmp_path, 4)
    before = state.path.read_bytes()
    size = (state.path.parent / "optimizer.safetensors").stat().st_size
    assert release(state, ["optimizer.safetensors", "none"], "old moments") == size
    assert state.path.read_bytes() == before
    assert state.present() == ["weights.safetensors"]
    assert state.pruned() == ["optimizer.safetensors"]
    assert list(state.problems()) == []
    record = json.loads((state.path.parent / "state.pruned.json").read_text())
    assert record["files"] == {
        "optimizer.safetensors": {**state.files["optimizer.safetensors"], "policy": "old moments"}
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["recorded"]["optimizer.safetensors"])
    assert release(state, ["optimizer.safetensors"], "again") == 0
    release(state, ["weights.safetensors"], "all")
    assert {name: entry["policy"] for name, entry in state.record()["files"].items()} == {
        "optimizer.safetensors": "old moments",
        "weights.safetensors": "all",
    }


def test_nothing_is_deleted_that_is_not_on_record(tmp_path, monkeypatch):
    """A kill between record and deletion leaves a file that is on record and there: it is checked like any other."""
    state = make_state(tmp_path, 4)
    optimizer = state.path.parent / "optimizer.safetensors"

    def no_space(path, value):
        raise OSError(errno.ENOSPC, "No space", str(path))

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr("effopd.artifacts.manifests.write_json", no_space)
        release(state, ["optimizer.safetensors"], "old moments")
    assert state.present() == list(state.files)
    release(state, ["optimizer.safetensors"], "old moments")
    optimizer.write_text("optimizer.safetensors 4 ")
    assert state.pruned() == []
    assert state.file("optimizer.safetensors") == optimizer
    optimizer.write_text("torn")
    assert "is truncated or altered" in next(state.problems())


def test_a_file_that_was_lost_is_not_excused_by_another_artifacts_record(tmp_path):
    state = make_state(tmp_path, 4)
    release(state, ["optimizer.safetensors"], "old moments")
    record = state.record_path.read_text()
    other = make_state(tmp_path, 4, extra="made again, otherwise")
    assert not other.record_path.exists(), "what is made anew is whole"
    other.record_path.write_text(record)
    (other.path.parent / "optimizer.safetensors").unlink()
    assert "optimizer.safetensors is missing" in next(other.problems())
    with pytest.raises(ArtifactError, match="is missing"):
        other.file("optimizer.safetensors")


def test_a_stage_that_needs_a_pruned_state_is_told_what_to_delete(tmp_path):
    states = {step: make_state(tmp_path, step) for step in (1, 2, 3, 4, 6, 8)}
    for step in (2, 4, 6):
        release(states[step], ["optimizer.safetensors"], "old moments")
    with pytest.raises(PrunedError) as only:
        states[2].file("optimizer.safetensors")
    assert re.search(
        rf"state/2/optimizer.safetensors was pruned \(old moments, \S+Z\). To have it back, delete {states[2].path} and run",
        str(only.value),
    )
    with pytest.raises(
        PrunedError, match=re.escape(f"delete {tmp_path}/state/{{4,6}}/state.json and run the workflow")
    ):
        states[6].file("optimizer.safetensors")
    release(states[3], ["weights.safetensors"], "between")
    with pytest.raises(PrunedError, match=re.escape("state/{2..4}/state.json")):
        states[4].file("optimizer.safetensors")
    states[3].path.write_text("{")
    with pytest.raises(PrunedError, match=re.escape("state/{2,3,4,6}/state.json")):
        states[6].file("optimizer.safetensors")
    assert states[8].file("optimizer.safetensors").is_file()


def test_records_of_several_manifests_in_a_folder_do_not_meet(tmp_path):
    """Shards lie side by side, and what is between the dots of their names is no suffix to be lost."""
    shards = []
    for index in range(2):
        path = tmp_path / f"step3.shard{index}of2.parquet"
        write_text(path, str(index))
        shards.append(
            write_manifest(
                path.with_suffix(".json"), kind="rollouts", spec={"shard": [index, 2]}, parents={},
                files={path.name: path}, started=time.time(),
            )
        )  # fmt: skip
    release(shards[0], shards[0].files, "put together")
    assert shards[0].record_path.name == "step3.shard0of2.pruned.json"
    assert read_manifest(shards[0].path).pruned() == ["step3.shard0of2.parquet"]
    assert shards[1].pruned() == []
    with pytest.raises(PrunedError, match=rf"delete {shards[0].path} and run"):
        shards[0].file("step3.shard0of2.parquet")


def test_prune_and_states_agree_on_names():
    assert (pruning.WEIGHTS, pruning.OPTIMIZER) == (WEIGHTS, OPTIMIZER)


def test_who_works_on_a_folder_can_be_seen_without_disturbing(tmp_path):
    assert look_at_claim(tmp_path) is None
    with claim_results(tmp_path, "snakemake.log"):
        claim = look_at_claim(tmp_path)
        assert claim.running
        assert claim.log == tmp_path.parent / "snakemake.log"
        assert abs(claim.started - time.time()) < 60
    assert not look_at_claim(tmp_path).running
    with claim_results(tmp_path):
        assert look_at_claim(tmp_path).log == claim.log, "what is no workflow keeps the last one's log"


def test_a_claim_is_not_refused_because_somebody_looks(tmp_path, monkeypatch):
    claim_results(tmp_path).close()
    looking = (tmp_path / ".workflow.lock").open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("time.sleep", lambda seconds: looking.close())
    claim_results(tmp_path).close()
    assert looking.closed


def test_folders_that_jobs_work_on_are_found(tmp_path):
    with exclusive(tmp_path / "a/b"), exclusive(tmp_path / "c"):
        assert sorted(held_folders(tmp_path)) == [tmp_path / "a/b", tmp_path / "c"]
    assert held_folders(tmp_path) == []


LOG = """Job stats:
job              count
-------------  -------
train_segment        3
total                7

Select jobs to execute...
Execute 2 jobs...
[Mon Nov 23 04:49:36 2026]
localrule make_data:
    output: results/data/arithmetic/manifest.json
    log: logs/make_data.log
    jobid: 7
    reason: Missing output files: results/data/arithmetic/manifest.json
    resources: tmpdir=/tmp
[Mon Nov 23 04:49:44 2026]
Finished jobid: 7 (Rule: make_data)
1 of 7 steps (14%) done
[Mon Nov 23 04:49:44 2026]
rule train_segment:
    input: results/models/base/manifest.json
    output: results/runs/opd/seed0/state/2/state.json
    log: logs/train_segment/opd.seed0.2.log
    jobid: 12
    wildcards: run=opd, seed=0, step=2
[Mon Nov 23 04:49:45 2026]
rule train_segment:
    log: logs/train_segment/opd.seed1.2.log
    jobid: 13
    wildcards: run=opd, seed=1, step=2
[Mon Nov 23 04:49:46 2026]
Error in rule train_segment:
    message: None
    jobid: 12
    input: results/models/base/manifest.json
    output: results/runs/opd/seed0/state/2/state.json
    log: logs/train_segment/opd.seed0.2.log (check log file(s) for error details)
    shell:
        effopd train-segment --student results/models/base/manifest.json
        (command exited with non-zero exit code)
"""
RESTARTED = """Trying to restart job 12.
[Mon Nov 23 04:49:47 2026]
rule train_segment:
    output: results/runs/opd/seed0/state/2/state.json
    log: logs/train_segment/opd.seed0.2.log
    jobid: 12
    wildcards: run=opd, seed=0, step=2, part=
"""


def test_what_jobs_do_is_read_from_snakemakes_log(tmp_path):
    log = tmp_path / "snakemake.log"
    log.write_text(LOG)
    jobs = jobs_of(log)
    assert (jobs.done, jobs.total) == (1, 7)
    assert [(job.name, job.logs) for job in jobs.running.values()] == [
        ("train_segment opd 1 2", ["logs/train_segment/opd.seed1.2.log"])
    ]
    assert [(job.name, job.logs) for job in jobs.failed.values()] == [
        ("train_segment opd 0 2", ["logs/train_segment/opd.seed0.2.log"])
    ]
    log.write_text(LOG + RESTARTED)
    assert sorted(job.name for job in jobs_of(log).running.values()) == [
        "train_segment opd 0 2",
        "train_segment opd 1 2",
    ]
    assert jobs_of(log).failed == {}
    assert [job.outputs for job in jobs_of(log).running.values()] == [[], ["results/runs/opd/seed0/state/2/state.json"]]
    assert jobs_of(tmp_path / "none").total == jobs_of(None).total == 0


def test_a_job_is_quoted_by_its_error_or_else_by_its_last_line(tmp_path):
    log = tmp_path / "x.log"
    assert last_said([log]) == ""
    assert as_error(last_said([log])) == "error: it ended without a message (killed?) after saying: nothing"
    log.write_text("step 1/4\nstep 2/4\n")
    assert last_said([tmp_path / "none", log]) == "step 2/4"
    assert as_error(last_said([log])).endswith("after saying: step 2/4")
    log.write_text("step 1/4\nerror: the disk is full\nsomething of the shell's\n")
    assert as_error(last_said([log])) == "error: the disk is full"


def test_a_folder_without_a_plan_is_refused_with_one_line(tmp_path):
    with pytest.raises(
        ConfigError, match=r"results/config.yaml does not exist: no workflow has begun in .*results. Run it"
    ):
        Plan.of_results(tmp_path / "results")
    (tmp_path / "results").mkdir()
    with pytest.raises(ConfigError, match=rf"Did you mean {tmp_path}/results\?"):
        Plan.of_results(tmp_path)
    config = tmp_path / "results/config.yaml"
    for text, message in (
        ("a: [1", "is damaged"),
        ("", "is damaged"),
        ("abc", "is damaged"),
        ("seed: 1", "`seed` is not a key"),
    ):
        config.write_text(text)
        with pytest.raises(ConfigError, match=message) as refused:
            Plan.of_results(tmp_path / "results")
        assert str(config) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_text_is_aligned_and_sizes_and_times_are_short():
    assert aligned([("a", "long", 1), ("bcd", "x", 200)], left=2) == ["a    long    1", "bcd  x     200"]
    assert [size_text(size) for size in (0, 999, 1000, 138032, 24_081_000, 310e6, 1.25e9, 2e12)] == [
        "0 B", "999 B", "1 kB", "138 kB", "24.1 MB", "310 MB", "1.2 GB", "2000.0 GB",
    ]  # fmt: skip
    assert [duration_text(seconds) for seconds in (0.2, 59, 120, 3600, 36000)] == [
        "0 s",
        "59 s",
        "2 min",
        "60 min",
        "10.0 h",
    ]
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"
