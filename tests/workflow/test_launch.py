"""How jobs start: GPU slots that are really exclusive, ranks that end with their launcher, options for several nodes."""

import os
import subprocess
import sys
import time

import pytest

from effopd.common.errors import UserError
from effopd.common.processes import LOST
from effopd.workflow import launch

LAUNCH = [sys.executable, "-m", "effopd.workflow.launch"]
LONG_SPEC = (
    '{"task":{"name":"arithmetic","min_terms":3,"max_terms":6,"largest_term":9,"seed":0,'
    '"splits":{"train":90000000,"validation":9,"test":9},"corpus":{"size":9,"slips":0,"direct_answers":0,"direct_error":0}}}'
)


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"ranks": 1}, "effopd"),
        ({"ranks": 1, "mpi": "srun"}, "effopd"),
        ({"ranks": 1, "gpus": 1}, "python -m effopd.workflow.launch --ranks 1 --gpus 1"),
        ({"ranks": 4}, "python -m effopd.workflow.launch --ranks 4"),
        ({"ranks": 4, "gpus": 4, "cpus": 9}, "python -m effopd.workflow.launch --ranks 4 --gpus 4"),
        ({"ranks": 4, "gpus": 4, "nodes": 2, "mpi": "srun", "cpus": 9},
         "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=9 --kill-on-bad-exit=1"
         " python -m effopd.workflow.launch --ranks 4 --nodes 2"),
    ],
)  # fmt: skip
def test_the_command_fits_the_resources(resources, words):
    assert launch.command(**resources) == words


def test_resources_that_do_not_fit_each_other_are_one_line():
    with pytest.raises(UserError, match="3 ranks cannot be shared out evenly over 2 nodes"):
        launch.command(3, nodes=2, mpi="srun")
    with pytest.raises(UserError, match="`nodes` is 2, and several nodes need `mpi: srun` and `tasks: 2` too"):
        launch.command(2, nodes=2)


def step(monkeypatch, tmp_path, **changes):
    """The environment of one part of a step on three nodes, and a `scontrol` that knows them."""
    values = {
        "STEP_NUM_NODES": "3",
        "STEP_NUM_TASKS": "3",
        "STEP_NODELIST": "n[7,12-13]",
        "NODEID": "0",
        "JOB_ID": "50123",
    }
    for name, value in {**values, **changes}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show hostnames n[7,12-13]" ] || { echo no such nodes >&2; exit 1; }\nprintf "n7\\nn12\\nn13\\n"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_launchers_of_several_nodes_meet_at_the_first(monkeypatch, tmp_path):
    step(monkeypatch, tmp_path)
    options = launch.rendezvous(6, 3)
    assert options[:2] == ["--nnodes=3", "--nproc-per-node=2"]
    assert "--rdzv-endpoint=n7:20123" in options
    assert options[-1] == "--rdzv-conf=is_host=1"
    step(monkeypatch, tmp_path, NODEID="2")
    others = launch.rendezvous(6, 3)
    assert others[-1] == "--rdzv-conf=is_host=0"
    assert others[:-1] == options[:-1]


def test_a_wrong_step_is_one_line(monkeypatch, tmp_path):
    step(monkeypatch, tmp_path, STEP_NUM_TASKS="6")
    with pytest.raises(UserError, match="3 nodes need one launcher each, and srun started 6 on 3 nodes"):
        launch.rendezvous(6, 3)
    step(monkeypatch, tmp_path, STEP_NODELIST="elsewhere")
    with pytest.raises(UserError, match="`scontrol show hostnames elsewhere` failed: no such nodes"):
        launch.rendezvous(6, 3)
    monkeypatch.delenv("SLURM_STEP_NUM_NODES")
    with pytest.raises(UserError, match="srun did not start this one. Start it with `srun --nodes=3"):
        launch.rendezvous(6, 3)


def test_more_gpus_than_there_are_is_one_line(monkeypatch):
    monkeypatch.setenv("EFFOPD_GPUS", "2")
    with pytest.raises(UserError, match="asks for 3 GPUs, and this machine has 2. Lower the rule's `gpu`"):
        launch.claim_gpus(3)
    monkeypatch.setenv("EFFOPD_GPUS", "two")
    with pytest.raises(UserError, match="EFFOPD_GPUS is 'two'. Set it to a number"):
        launch.claim_gpus(1)


def test_gpus_are_those_that_nvidia_smi_lists(monkeypatch, tmp_path):
    monkeypatch.delenv("EFFOPD_GPUS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.gpus_here() == 0
    listed = (
        "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb     Device  0: (UUID: MIG-2)\nGPU 1: NVIDIA H200 (UUID: GPU-3)"
    )
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$*" = --list-gpus ] && echo "{listed}"\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert launch.gpus_here() == 2


@pytest.fixture
def jobs(tmp_path):
    """Starts long jobs on a machine that says it has two GPUs, and kills those that are left."""
    environment = {**os.environ, "EFFOPD_GPUS": "2", "TMPDIR": str(tmp_path)}
    for name in ("CUDA_VISIBLE_DEVICES", "EFFOPD_WARM"):
        environment.pop(name, None)
    started = []

    def start(*options, **more):
        verb = ["make-data", "--spec", LONG_SPEC, "--out", f"{len(started)}/m.json"]
        job = subprocess.Popen(
            [*LAUNCH, *options, *verb], env={**environment, **more}, cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        started.append(job)
        return job

    yield start
    for job in started:
        job.kill()
        job.communicate()


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
    return found


def running(pid):
    """The environment of a process once it is `python -m effopd make-data`, else nothing."""
    with open(f"/proc/{pid}/cmdline") as line, open(f"/proc/{pid}/environ") as variables:
        if "\0effopd\0make-data\0" not in line.read():
            return {}
        return dict(entry.split("=", 1) for entry in variables.read().split("\0") if "=" in entry)


def ranks_of(launcher):
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True)
    return [int(pid) for pid in children.stdout.split() if running(pid)]


def gpus_of(job):
    return wait_for(lambda: running(job.pid))["CUDA_VISIBLE_DEVICES"]


@pytest.mark.slow
def test_no_two_jobs_have_a_gpu_in_common_and_a_killed_job_gives_its_own_back(jobs):
    first, second = jobs("--gpus", "1"), jobs("--gpus", "1")
    assert {gpus_of(first), gpus_of(second)} == {"0", "1"}
    third = jobs("--gpus", "1")
    assert third.stderr.readline() == "waiting for 1 of this machine's 2 GPUs: too few are free\n"
    time.sleep(2)
    assert not running(third.pid)
    freed = gpus_of(first)
    first.kill()
    assert gpus_of(third) == freed
    both = jobs("--gpus", "2")
    assert both.stderr.readline() == "waiting for 2 of this machine's 2 GPUs: too few are free\n"
    freed = gpus_of(second)
    second.kill()
    assert gpus_of(jobs("--gpus", "1")) == freed  # who waits for two holds none meanwhile


@pytest.mark.slow
def test_ranks_hold_gpus_of_their_launcher_and_end_with_it(jobs):
    launcher = jobs("--ranks", "2", "--gpus", "2")
    wait_for(lambda: len(ranks_of(launcher)) == 2)
    ranks = ranks_of(launcher)
    assert {running(rank)["CUDA_VISIBLE_DEVICES"] for rank in ranks} == {"0,1"}
    assert {running(rank)["RANK"] for rank in ranks} == {"0", "1"}
    launcher.kill()
    wait_for(lambda: not any(os.path.exists(f"/proc/{rank}") for rank in ranks))


def test_a_rank_whose_launcher_ended_before_it_started_does_nothing(tmp_path):
    verb = ["make-data", "--spec", LONG_SPEC, "--out", "m.json"]
    environment = {**os.environ, "EFFOPD_LAUNCHER": "1"}
    rank = subprocess.run([sys.executable, "-m", "effopd", *verb], env=environment, cwd=tmp_path, timeout=60)
    assert rank.returncode == LOST
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_slurm_gave_is_used_and_nothing_claimed(jobs, tmp_path):
    assert gpus_of(jobs("--gpus", "1", CUDA_VISIBLE_DEVICES="5")) == "5"
    assert not list(tmp_path.glob("effopd-*"))
