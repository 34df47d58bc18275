"""The workflow through SLURM, with the profile for it, on the cluster that tests/helpers/start_slurm.sh starts."""

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from preloaded import Process
from workflow_runs import BEFORE_STUDENTS, ROOT, Workflow, environments

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
SCRIPT = ROOT / "tests/helpers/start_slurm.sh"
PROFILE = ROOT / "config/profiles/slurm"
# Nobody on the test cluster minds being asked often.
OPTIONS = ("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2")


class Row(NamedTuple):
    """A job in SLURM's queue; `name` is its rule and wildcards."""

    number: str
    state: str
    reason: str
    name: str
    nodes: str


@dataclass
class Cluster:
    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def queue(self) -> list[Row]:
        """Jobs that are queued, running or over."""
        rows = self.ask("squeue", "--noheader", "--states=all", "--format=%i|%T|%r|%k|%N").splitlines()
        return [Row(*row.split("|")) for row in rows]

    def workflow(self, folder: Path, config: dict[str, Any], profile: Path = PROFILE) -> Workflow:
        return Workflow(folder, config, self.environment, ("--profile", str(profile), *OPTIONS))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("slurm"))
    start = 'line=$("$0" start "$1") && eval "$line" && echo "$SLURM_CONF" && echo "$PATH"'
    started = subprocess.run(["bash", "-c", start, str(SCRIPT), folder], capture_output=True, text=True)
    if started.returncode == 2:
        pytest.skip(started.stderr.strip())
    assert started.returncode == 0, started.stderr
    configuration, path = started.stdout.splitlines()
    cluster = Cluster({"SLURM_CONF": configuration, "PATH": path})
    yield cluster
    cluster.ask("scancel", "--me")
    subprocess.run([str(SCRIPT), "stop", folder], check=True)


def experiment(**changes: Any) -> dict[str, Any]:
    """The tiny experiment for one seed, its weights not looked into, with other sections in place of its own."""
    config: dict[str, Any] = Workflow(Path()).config
    return {**config, "seeds": [0], "dynamics": {"enabled": False}, **changes}


@pytest.fixture
def models(undisturbed, tmp_path):
    """Its data and models, made here: what follows them goes through SLURM."""
    parts = (part for part in BEFORE_STUDENTS if "evaluation" not in part)
    return undisturbed.copy(tmp_path / "models", *parts).folder


def copied(models: Path, folder: Path) -> Path:
    subprocess.run(["cp", "-a", str(models), str(folder)], check=True)
    return folder


@dataclass
class Case:
    """An experiment, a job to cancel while it runs, and one to preempt: once a file is there, or once it runs."""

    changes: dict[str, Any]
    cancelled: str
    preempted: str
    once: str | None


CASES = {
    "colocated": Case(
        {
            "evaluation": {"batch_size": 24, "baseline": "effopd"},
            # steps that last long enough to be preempted in
            "runs": {
                "effopd": {
                    "training": {"prompts_per_step": 64, "samples_per_prompt": 4},
                    "extrapolation": {"triggers": [1]},
                }
            },
        },
        cancelled="rule_evaluate_model_wildcards_teacher",
        preempted="rule_train_segment_wildcards_effopd_0_4",
        once="runs/effopd/seed0/rollouts/step3.json",
    ),
    "staged": Case(
        {
            "execution": {"mode": "staged", "shards": 2},
            "runs": {
                "opd": {
                    "training": {"steps": 1, "batch_size": 4},
                    "extrapolation": {"coefficients": [2, 4], "search": "all"},
                }
            },
        },
        cancelled="rule_evaluate_model_wildcards_teacher",
        preempted="rule_score_rollouts_wildcards_opd_0_1_.shard0of2",
        once=None,
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_queued_cancelled_and_preempted_jobs_end_in_the_artifacts_of_a_local_run(cluster, models, tmp_path, case):
    local = Workflow(copied(models, tmp_path / "local"), experiment(**case.changes))
    local.run()
    workflow = cluster.workflow(copied(models, tmp_path / "slurm"), local.config)
    with workflow.started() as process:
        seen = disturb(cluster, workflow, process, case)
        output, _ = process.communicate()
    assert process.returncode == 0, output

    assert workflow.contents() == local.contents()
    assert workflow.planned() == {}
    workflow.options = local.options
    assert workflow.planned() == {}, "where a job ran must not matter"

    assert seen.waited, "no job had to wait for another: the test proves too little"
    name = case.cancelled.replace("rule_", "").replace("_wildcards_", " ")
    assert re.search(
        rf"{name}: error: SLURM ended it \(CANCELLED\) after it said: .* "
        rf"\(SLURM job {seen.cancelled}; log: logs/\S+, \S+/logs/slurm/\S+/{seen.cancelled}.log\)\n",
        output,
    ), [line for line in output.splitlines() if name in line]
    assert f"{name}: trying again" in output
    assert "Restarts=1 " in cluster.ask("scontrol", "show", "job", seen.preempted)
    assert {row.number: row.state for row in cluster.queue()}[seen.preempted] == "COMPLETED"
    if case.once:
        assert workflow.path(case.once).stat().st_mtime_ns == seen.made, "finished steps were made again"
    assert {variables.get("CUDA_VISIBLE_DEVICES") for variables in seen.environments.values()} == {"0", "1"}
    assert not any("EFFOPD_WARM" in variables for variables in seen.environments.values())


@dataclass
class Seen:
    """What happened while a workflow ran: whether a job waited for a GPU, numbers of jobs, environments of processes."""

    waited: bool = False
    cancelled: str = ""
    preempted: str = ""
    made: int = 0
    environments: dict[int, dict[str, str]] = field(default_factory=dict)


def disturb(cluster: Cluster, workflow: Workflow, process: Process, case: Case) -> Seen:
    """Watch a workflow until it ends, cancel one of its jobs and preempt another."""
    seen = Seen()
    asked = 0.0
    running: dict[str, str] = {}
    deadline = time.monotonic() + 1200
    while process.poll() is None:
        assert time.monotonic() < deadline, cluster.queue()
        if time.monotonic() - asked > 0.5:
            asked = time.monotonic()
            rows = [row for row in cluster.queue() if row.state in ("PENDING", "RUNNING")]
            running = {row.name: row.number for row in rows if row.state == "RUNNING"}
            seen.waited |= any(row.reason in ("Resources", "Priority") for row in rows)
            seen.environments |= environments(workflow.folder)
            if not seen.cancelled and case.cancelled in running:
                seen.cancelled = running[case.cancelled]
                cluster.ask("scancel", seen.cancelled)
        ready = workflow.path(case.once).exists() if case.once else True
        if not seen.preempted and ready and case.preempted in running:
            seen.preempted = running[case.preempted]
            cluster.ask("scontrol", "requeue", seen.preempted)
            if case.once:
                seen.made = workflow.path(case.once).stat().st_mtime_ns
        time.sleep(0.01)
    return seen


def test_two_nodes_update_as_one_does(cluster, models, tmp_path):
    """Two ranks on two nodes, started by srun, against two ranks here."""
    before, target = "results/runs/opd/seed0/scores/step1.json", "results/runs/opd/seed0/state/1/state.json"
    config = experiment(execution={"mode": "staged"})
    config["training"] |= {"num_processes": 2, "batch_size": 4}
    config["runs"] = {"opd": config["runs"]["opd"]}
    local = Workflow(copied(models, tmp_path / "local"), config)
    local.run(before)
    workflow = cluster.workflow(copied(local.folder, tmp_path / "slurm"), config, tmp_path / "profile")
    local.run(target)
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text())
    profile["set-resources"]["update_policy"].update(
        slurm_partition="both", nodes=2, mpi="srun", tasks=2, tasks_per_gpu=0, cpus_per_task=1
    )
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    workflow.run(target)
    (row,) = [row for row in cluster.queue() if row.name == "rule_update_policy_wildcards_opd_0_1" and "," in row.nodes]
    assert row.state == "COMPLETED"
    assert workflow.contents() == local.contents()


def test_what_a_job_cannot_do_is_one_line_that_names_it(cluster, models, tmp_path):
    """The settings of `runtime` reach the jobs; what SLURM refuses is said as it says it."""
    config = experiment()
    config["runtime"]["device"] = "cuda"
    workflow = cluster.workflow(copied(models, tmp_path / "slurm"), config)
    target = ("--retries", "0", "results/runs/opd/seed0/state/1/state.json")
    lines = [line for line in workflow.run(*target, status=1).splitlines() if "error" in line]
    assert len(lines) == 1
    assert re.search(
        r"preflight base-teacher-\w+: error: config: `runtime.device` is 'cuda', and this machine has no usable GPU. Use auto or cpu. "
        r"\(SLURM job \d+; log: logs/preflight/base-teacher-\w+.log, ",
        lines[0],
    )
    output = workflow.run("--set-resources", "preflight:slurm_partition=nowhere", *target, status=1)
    assert re.search(r"preflight base-teacher-\w+: error: SLURM sbatch failed.*invalid partition", output)


def test_an_interrupted_workflow_takes_its_jobs_with_it(cluster, models, tmp_path):
    workflow = cluster.workflow(copied(models, tmp_path / "slurm"), experiment())
    with workflow.started("results/runs/opd/seed0/state/1/state.json") as process:
        mine = []
        while not mine and process.poll() is None:
            mine = [row for row in cluster.queue() if row.state == "RUNNING"]
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    states = {row.number: row.state for row in cluster.queue()}
    assert [states[row.number] for row in mine] == ["CANCELLED"]
    assert not environments(workflow.folder)
