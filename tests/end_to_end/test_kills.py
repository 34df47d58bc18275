"""Chaos: whatever is killed, and when, one more run finishes with bitwise the results of an undisturbed one.

Each case starts from a finished experiment in which one stage's result was deleted, waits for that stage's job, kills
at a seeded moment, runs the workflow once more and compares everything.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import segments
from preloaded import Process, start_ranks
from workflow_runs import Workflow

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Kill:
    """One kill: of `victim`, by `signal`, while `verb` runs, whose `lost` results were deleted before."""

    verb: str
    lost: str  # globs below results/
    victim: str  # workflow | group | job | rank | writer
    signal: signal.Signals
    within: float = 0.25  # seconds after the job was seen, at most

    def __str__(self) -> str:
        return f"{self.verb}-{self.victim}-{self.signal.name}"


KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
RUN = "runs/effopd/seed0"
STEP_2 = f"{RUN}/*/step2* {RUN}/*/2"
MODELS = [  # dear, and the same jobs in every mode: killed in one
    Kill("make-data", "*", "job", KILL),
    Kill("make-data", "*", "group", KILL),
    Kill("pretrain-model", "models/base/*", "job", KILL, 1.0),
    Kill("pretrain-model", "models/base/*", "group", INT, 1.0),
    Kill("train-rl", "models/teacher/*", "job", KILL, 0.5),
    Kill("preflight", f"preflight/* {RUN}/*/*1*", "job", KILL),
]
SHARED = [
    Kill("select-candidate", f"{RUN}/extrapolation/1/decision.json", "job", KILL),
    Kill("select-candidate", f"{RUN}/extrapolation/1/decision.json", "writer", KILL),
    Kill("evaluate", "evaluation/effopd/seed0/2.*", "job", TERM),
    Kill("evaluate", "evaluation/effopd/seed0/2.*", "workflow", KILL),
    Kill("collect-run", f"{RUN}/metrics.parquet", "group", KILL),
    Kill("make-tables", "tables/*", "job", KILL),
    Kill("plot-figure", "figures/*", "group", TERM, 0.5),
    Kill("write-report", "report.html", "job", KILL),
]
CASES = {
    "colocated": [
        *MODELS,
        *SHARED,
        Kill("train-segment", f"{RUN}/*/*1*", "job", KILL),
        Kill("train-segment", f"{RUN}/*/*1*", "group", KILL),
        Kill("train-segment", STEP_2, "group", INT),
        Kill("train-segment", STEP_2, "workflow", KILL),
        Kill("train-segment", STEP_2, "writer", KILL),
        Kill("evaluate-candidates", f"{RUN}/extrapolation/1/*", "job", KILL),
        Kill("evaluate-candidates", f"{RUN}/extrapolation/2/*", "workflow", INT),
    ],
    "staged": [
        *SHARED,
        Kill("generate-rollouts", f"{RUN}/*/*1*", "job", KILL),
        Kill("generate-rollouts", f"{RUN}/rollouts/step2* {RUN}/state/2", "writer", KILL),
        Kill("generate-rollouts", f"{RUN}/rollouts/step2* {RUN}/state/2", "group", TERM),
        Kill("score-rollouts", f"{RUN}/rollouts/* {RUN}/scores/* {RUN}/state/*", "job", KILL),
        Kill("score-rollouts", f"{RUN}/rollouts/* {RUN}/scores/* {RUN}/state/*", "group", KILL),
        Kill("update-policy", f"{RUN}/state/*", "job", KILL),
        Kill("update-policy", f"{RUN}/state/*", "workflow", KILL),
        Kill("update-policy", STEP_2, "writer", KILL),
        Kill("evaluate-candidate", f"{RUN}/extrapolation/1/*", "job", KILL),
        Kill("evaluate-candidate", f"{RUN}/extrapolation/*/*", "group", INT),
    ],
    "analyzed": [
        Kill("analyze-weights", "dynamics/effopd/seed0/*", "job", KILL),
        Kill("evaluate-interventions", "dynamics/effopd/seed0/*", "group", KILL, 1.0),
        Kill("evaluate-interventions", "dynamics/models/teacher/*", "job", TERM, 1.0),
    ],
    "bfloat16": [
        Kill("train-segment", f"{RUN}/*/*1*", "rank", KILL, 4.0),
        Kill("train-segment", STEP_2, "rank", KILL, 4.0),
        Kill("train-segment", STEP_2, "group", KILL, 4.0),
    ],
    "ranks": [
        Kill("train-rl", "models/teacher/*", "rank", KILL, 4.0),
        Kill("train-rl", "models/teacher/*", "workflow", TERM, 4.0),
        Kill("update-policy", f"{RUN}/state/*", "rank", KILL, 4.0),
        Kill("update-policy", f"{RUN}/state/2/*", "group", INT, 4.0),
    ],
}


def small(folder: Path, mode: str) -> Workflow:
    """The tiny experiment cut down to one run of two steps; with `ranks`, staged and two processes a training job.

    In `bfloat16` two processes share out AdamW's moments and train a segment together. Only if it is `analyzed` are
    its weights looked into: tables and figures of that are most of a run's jobs.
    """
    workflow, ranks = Workflow(folder), 2 if mode in ("ranks", "bfloat16") else 1
    config = workflow.config
    config["models"]["teacher"] |= {"num_processes": 2 if mode == "ranks" else 1, "steps": 2}
    config["training"] |= {"steps": 2, "batch_size": 3, "num_processes": ranks}
    if mode == "bfloat16":
        config["training"] |= {"precision": "bfloat16", "zero_stage": 1}
    config["runs"] = {"effopd": config["runs"]["effopd"]}
    config["evaluation"]["baseline"] = "effopd"
    config["seeds"] = [0]
    config["dynamics"]["enabled"] = mode == "analyzed"
    together = mode in ("colocated", "analyzed", "bfloat16")
    config["execution"] = {"mode": "colocated", "shards": 1} if together else {"mode": "staged", "shards": 2}
    return workflow


@pytest.fixture
def reference(finished, request) -> Workflow:
    """The undisturbed run of the mode that the test names."""
    mode = request.param
    return finished(f"small-{mode}", lambda folder: small(folder, mode))


def jobs_in(folder: Path, verb: str) -> Iterator[int]:
    """The processes of a verb's jobs that work in a folder."""
    for process, arguments in processes_in(folder):
        if verb.encode() in arguments:
            yield process


def processes_in(folder: Path) -> Iterator[tuple[int, list[bytes]]]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == folder:
                yield int(entry.name), (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile, or is somebody else's


def rank_of(workflow: int) -> int | None:
    """One rank of two of the training job that is running: a fork of the workflow's warm process."""
    for server in children_of(workflow):
        forks = children_of(server)
        if len(forks) == 2 and Path(f"/proc/{server}/cmdline").read_bytes().startswith(os.fsencode(sys.executable)):
            return forks[1]
    return None


def children_of(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []  # it ended meanwhile


def is_writing(folder: Path) -> bool:
    return next(folder.glob("results/**/.*.part"), None) is not None


def strike(kill: Kill, workflow: Workflow, process: Process, wait: float) -> bool:
    """Wait for the job and `wait` seconds more, then kill the victim. Whether it was there."""
    folder = workflow.folder
    while process.poll() is None and not next(jobs_in(folder, kill.verb), None):
        time.sleep(0.02)
    if kill.victim == "writer":
        while process.poll() is None and not is_writing(folder):
            pass
        os.killpg(process.pid, kill.signal)
        return is_writing(folder)
    if kill.victim == "rank":
        while process.poll() is None and rank_of(process.pid) is None:
            time.sleep(0.01)
    time.sleep(wait)
    if process.poll() is not None:
        return False
    if kill.victim == "group":
        os.killpg(process.pid, kill.signal)
        return True
    victim = {
        "workflow": lambda: process.pid,
        "job": lambda: next(jobs_in(folder, kill.verb), None),
        "rank": lambda: rank_of(process.pid),
    }[kill.victim]()
    if victim is None:
        return False
    try:
        os.kill(victim, kill.signal)
    except ProcessLookupError:
        return False
    return True


def lose(workflow: Workflow, patterns: str) -> None:
    paths = [path for pattern in patterns.split() for path in workflow.folder.glob(f"results/{pattern}")]
    assert paths, patterns
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# Those that modes have in common are killed in either: every other one here, the rest in `make test-exhaustive`.
REST = {"colocated": SHARED[1::2], "staged": SHARED[::2]}
KILLS = [
    pytest.param(mode, kill, id=f"{mode}-{kill}", marks=[pytest.mark.exhaustive] * (kill in REST.get(mode, ())))
    for mode, kills in CASES.items()
    for kill in kills
]


@pytest.mark.parametrize(("reference", "kill"), KILLS, indirect=["reference"])
def test_after_a_kill_one_more_run_gives_the_same_bits(reference, tmp_path, kill):
    moments = random.Random(str(kill))
    for attempt in range(6):
        workflow = reference.copy(tmp_path / str(attempt))
        lose(workflow, kill.lost)
        process = workflow.start()
        # a fast machine may be done with the job before the blow falls: again, and sooner
        struck = strike(kill, workflow, process, moments.uniform(0, kill.within / 2**attempt))
        output, _ = process.communicate(timeout=300)
        if struck:
            break
    assert struck, output
    assert "Traceback" not in output
    workflow.run()
    assert workflow.contents() == reference.contents()


OUTLIVING = [
    pytest.param(mode, verb, id=f"{mode}-{verb}")
    for mode, verb in (("ranks", "train-rl"), ("colocated", "train-segment"), ("staged", "update-policy"))
]


@pytest.mark.parametrize(("reference", "verb"), OUTLIVING, indirect=["reference"])
def test_what_a_job_finished_that_outlived_its_killed_workflow_is_used(reference, tmp_path, verb):
    """kill -9 of the workflow's process alone; its cold jobs (train-rl has two ranks) go on to their end."""
    workflow = reference.copy(tmp_path / "outlived")
    workflow.config["runtime"]["warm"] = "off"
    lose(workflow, "models/teacher/*" if verb == "train-rl" else STEP_2)
    process = workflow.start()
    while next(jobs_in(workflow.folder, verb), None) is None and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    while process.poll() is None:
        time.sleep(0.02)
    workflow.config = reference.config
    workflow.run()
    assert workflow.contents() == reference.contents()


@pytest.fixture(scope="module")
def long_segment(tmp_path_factory) -> tuple[Path, Path]:
    """Inputs, and an undisturbed run of the long segment."""
    inputs, whole = (tmp_path_factory.mktemp(name) for name in ("inputs", "whole"))
    segments.make_inputs(inputs)
    segments.train(inputs, whole, "zero1-bfloat16", "first")
    start_segment(inputs, whole, whole).communicate(timeout=300)
    return inputs, whole


def start_segment(inputs: Path, run: Path, origin: Path) -> Process:
    """Two ranks that train the long segment in bfloat16 under ZeRO 1, with a resume point after every step."""
    return start_ranks(segments.__file__, "train", inputs, run, "zero1-bfloat16", "long", origin)


@pytest.mark.parametrize("victim", ["rank", "group"])
def test_a_segment_killed_at_random_moments_goes_on_bitwise_from_its_resume_points(long_segment, tmp_path, victim):
    """Killed again and again while it does steps: each life starts from what the last one saved."""
    (inputs, whole), run = long_segment, tmp_path
    moments, last = random.Random(victim), segments.SEGMENTS["long"][1]
    resume, state = run / f"state/{last}/resume.safetensors", run / f"state/{last}/state.json"
    for _ in range(3):
        process = start_segment(inputs, run, whole)
        before = resume.stat().st_mtime_ns if resume.exists() else 0
        while process.poll() is None and (not resume.exists() or resume.stat().st_mtime_ns == before):
            time.sleep(0.002)  # until it trains
        time.sleep(moments.uniform(0, 0.2))
        assert process.poll() is None, "it was done before the blow fell"
        if victim == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(children_of(process.pid)[moments.randrange(2)], signal.SIGKILL)
        process.communicate(timeout=120)
        assert not state.exists()
    start_segment(inputs, run, whole).communicate(timeout=300)
    assert segments.differences(segments.left(whole, "long"), segments.left(run, "long")) == []
