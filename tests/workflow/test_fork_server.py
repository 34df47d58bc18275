"""The warm server: a job in a fork of it is the job, and dies with its client."""

import os
import socket
import subprocess
import sys
import time

import pytest

from effopd.workflow import fork_server as warm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not warm.supported(), reason="Linux only")]
EFFOPD = [sys.executable, "-m", "effopd"]


@pytest.fixture
def server(monkeypatch):
    process = warm.start_server()
    environment = {**os.environ, "EFFOPD_WARM": os.environ.pop("EFFOPD_WARM")}
    subprocess.run([*EFFOPD, "--version"], env=environment, check=True)  # answered once the server has started
    yield process, environment
    process.kill()
    process.wait()


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def test_output_errors_status_and_folder_are_those_of_a_cold_job(server, tmp_path):
    _, environment = server
    for arguments, status in (
        (["--version"], 0),
        (["describe-config"], 0),
        (["make-data", "--spec", "{", "--out", "x"], 2),
        (["select-candidate", "--spec", "{}", "--state", "none.json"], 2),
    ):
        warm_job = subprocess.run([*EFFOPD, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
        cold = {key: value for key, value in environment.items() if key != "EFFOPD_WARM"}
        cold_job = subprocess.run([*EFFOPD, *arguments], env=cold, cwd=tmp_path, capture_output=True, text=True)
        assert (warm_job.returncode, warm_job.stdout, warm_job.stderr) == (status, cold_job.stdout, cold_job.stderr)


def long_job(environment, folder, **options):
    spec = (
        '{"task":{"name":"arithmetic","min_terms":3,"max_terms":6,"largest_term":9,"seed":0,'
        '"splits":{"train":90000000,"validation":9,"test":9},"corpus":{"size":9,"slips":0,"direct_answers":0,"direct_error":0}}}'
    )
    return subprocess.Popen(
        [*EFFOPD, "make-data", "--spec", spec, "--out", "m.json"], env=environment, cwd=folder, **options
    )


def wait_for(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)


def test_a_killed_client_takes_its_job_with_it_and_nothing_else(server, tmp_path):
    process, environment = server
    first, second = long_job(environment, tmp_path), long_job(environment, tmp_path)
    wait_for(lambda: len(children_of(process.pid)) == 2)
    first.kill()
    wait_for(lambda: len(children_of(process.pid)) == 1)
    assert second.poll() is None
    second.kill()
    wait_for(lambda: not children_of(process.pid))


def test_a_killed_job_and_a_killed_server_are_failures_of_the_client(server, tmp_path):
    process, environment = server
    job = long_job(environment, tmp_path, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: children_of(process.pid))
    os.kill(children_of(process.pid)[0], 9)
    assert "error: this job was killed (Killed)." in job.communicate(timeout=20)[1]
    assert job.returncode == 137
    job = long_job(environment, tmp_path)
    wait_for(lambda: children_of(process.pid))
    (child,) = children_of(process.pid)
    process.kill()
    assert job.wait(20) == warm.LOST
    wait_for(lambda: not os.path.exists(f"/proc/{child}"))


def test_without_a_server_a_job_starts_cold(tmp_path):
    environment = {**os.environ, "EFFOPD_WARM": "effopd-nobody"}
    done = subprocess.run([*EFFOPD, "--version"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "effopd, version" in done.stdout


def test_a_request_that_is_none_ends_no_other_job(server, tmp_path):
    _, environment = server
    for sent in (b"", b"\0", b"\0\0\0\4null", b"\0\0\0\4{]}x", b"\0\0\0\2{}", b"\xff\xff\xff\xff{"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect("\0" + environment["EFFOPD_WARM"])
            if sent:
                socket.send_fds(connection, [sent], [0, 1, 2])
    assert subprocess.run([*EFFOPD, "--version"], env=environment, cwd=tmp_path).returncode == 0
