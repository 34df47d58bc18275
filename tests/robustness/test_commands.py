"""The harness itself: it must fail where a command ends wrongly."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save

import commands
from commands import Ending, effopd, untouched
from effopd.common.errors import describe_os_error
from effopd.dynamics import analysis  # noqa: F401 - which the unprivileged could not import
from effopd.results import compare  # noqa: F401


def test_right_and_refused(tmp_path):
    effopd("--version", folder=tmp_path).succeeded()
    line = effopd("verify", "--results", tmp_path / "none", folder=tmp_path).refused("none")
    assert line.startswith("error: ")


@pytest.mark.parametrize(
    ("status", "output"),
    [
        (1, "Traceback (most recent call last):\nerror: KeyError: 'x'\n"),
        (2, "Traceback (most recent call last):\nerror: something is wrong here\n"),
        (2, "error: something is wrong here\nand goes on in a second line\n"),
        (2, "error: first thing that is wrong\nerror: second thing that is wrong\n"),
        (2, "error: x\n"),
        (2, ""),
        (137, "error: something is wrong here\n"),
        (2, "error: something is wrong here: \x1b[2J\n"),
    ],
)
def test_wrong_endings_fail(status, output):
    with pytest.raises(AssertionError):
        Ending(("verify",), status, output).right_or_refused()


def test_an_endless_command_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "run_verb", lambda arguments: time.sleep(600))
    with pytest.raises(AssertionError, match="did not end within"):
        effopd("verify", folder=tmp_path, timeout=0.2)


@pytest.mark.parametrize("change", ["content", "link", "mode", "new", "gone"])
def test_changes_are_seen(tmp_path, change):
    (tmp_path / "file").write_text("a")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(AssertionError), untouched(tmp_path):
        match change:
            case "content":
                (tmp_path / "file").write_text("b")
            case "link":
                (tmp_path / "link").unlink()
                (tmp_path / "link").symlink_to("elsewhere")
            case "mode":
                (tmp_path / "file").chmod(0o600)
            case "new":
                (tmp_path / "other").touch()
            case "gone":
                (tmp_path / "link").unlink()


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_os_error_has_a_line(number):
    for error in (OSError(number, "why"), OSError(number, "why", "some/file")):
        line = describe_os_error(error)
        assert len(line) > 10
        assert "\n" not in line
        assert error.filename is None or error.filename in line


ARGUMENTS = {  # of `analyze`, whose checkpoint is a single file: what is wrong, and words of the line
    "no path": (("--trained", ""), "--trained is empty"),
    "step beyond a table": (("--trained", f"{10**20}=a"), "step 100000000000000000000 is too large"),
    "step beyond Python": (("--trained", f"{'9' * 5000}=a"), "is too large"),
    "name with a line break": (("--trained", "a\nb"), "a b is no folder"),
    "tolerance": (("--trained", "a", "--tolerance", "nan"), "--tolerance is nan"),
    "threads": (("--trained", "a", "--threads", "9" * 20), "--threads"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_of_analyze(case, tmp_path):
    words, expected = ARGUMENTS[case]
    (tmp_path / "base.safetensors").write_bytes(save({"a": torch.ones(2)}))
    effopd("analyze", "--base", "base.safetensors", "--out", "out", *words, folder=tmp_path).refused(expected)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files(closed, tmp_path):
    command = f'exec "{sys.executable}" -m effopd verify --results none {closed}'
    found = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert "Traceback" not in found.stdout + found.stderr
    assert not found.stdout


@pytest.mark.parametrize(
    ("arguments", "streams"),
    [
        (["describe-config"], ["stdout"]),
        (["--help"], ["stdout"]),
        (["status", "--results", "none"], ["stderr"]),
        (["describe-config"], ["stdout", "stderr"]),
    ],
)
def test_nobody_reads_what_is_said(arguments, streams, tmp_path):
    """As in `effopd ... | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **dict.fromkeys(streams, writing)}
    command = [sys.executable, "-m", "effopd", *arguments]
    found = subprocess.run(command, cwd=tmp_path, text=True, timeout=60, **given)
    os.close(writing)
    assert found.returncode == (141 if "stdout" in streams else 2)
    assert not found.stderr
    assert not found.stdout


def test_a_full_disk_under_what_is_said(tmp_path):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "effopd", "describe-config"]
        found = subprocess.run(command, cwd=tmp_path, text=True, timeout=60, stdout=full, stderr=subprocess.PIPE)
    assert found.returncode == 2
    assert found.stderr.startswith("error: the disk is full")


def test_a_broken_pipe_of_another_process_is_said(tmp_path, monkeypatch, capfd):
    def broken():
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    monkeypatch.setattr("effopd.config.table.parameter_table", broken)
    effopd("describe-config", folder=tmp_path).refused("a process that this one works with has ended")


@contextmanager
def unprivileged():
    """Work as a user from whom files can be kept."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


DENIED = {  # command and the file that may not be read
    "a model": (["analyze", "--base", "model", "--trained", "other", "--out", "out"], "model/model.safetensors"),
    "an index": (["analyze", "--base", "sharded", "--trained", "other", "--out", "out"], "sharded/model.safetensors.index.json"),
    "another model": (["extrapolate", "--anchor", "model", "--current", "other", "--coefficient", "1", "--out", "out"], "other/model.safetensors"),
    "the configuration of results": (["status", "--results", "results"], "results/config.yaml"),
    "the folder of results": (["status", "--results", "results"], "results"),
    "results to compare": (["compare", "results", "results"], "results/config.yaml"),
    "what is to be pruned": (["prune", "--results", "results"], "results/config.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("case", DENIED)
def test_what_may_not_be_read_is_not_called_damaged(case):
    arguments, denied = DENIED[case]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, content in {
            "model/model.safetensors": save({"a": torch.ones(2)}),
            "other/model.safetensors": save({"a": torch.zeros(2)}),
            "sharded/model.safetensors.index.json": b"{}",
            "results/config.yaml": b"runs: {}",
        }.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        folder.chmod(0o777)
        (folder / denied).chmod(0)
        with unprivileged():
            line = effopd(*arguments, folder=folder).refused("no permission", denied)
        assert "damaged" not in line
        assert "delete" not in line.lower()
        (folder / denied).chmod(0o700)


SPECS = {  # by stage: a spec written by hand, and the key that it lacks
    "make-data": ({}, "task"),
    "fetch-model": ({}, "model"),
    "write-config": ({}, "config"),
    "collect-run": ({"code": "x"}, "run"),
    "make-tables": ({}, "runs"),
    "plot-figure": ({}, "runs"),
    "write-report": ({}, "config"),
    "compare-with-paper": ({"tables": []}, "runs"),
}


@pytest.mark.parametrize("stage", SPECS)
def test_a_spec_written_by_hand(stage, tmp_path):
    spec, key = SPECS[stage]
    folders = {"collect-run": ["--run-folder", "run"], "make-data": [], "fetch-model": [], "write-config": []}
    given = folders.get(stage, ["--results", "results"])
    line = effopd(stage, "--spec", json.dumps(spec), "--out", "out/x.json", *given, folder=tmp_path).refused(
        f"--spec has no `{key}"
    )
    assert line.endswith("it is not a spec of this version of effopd.")


def test_the_configuration_is_written_as_it_was_given(tmp_path):
    spec = {"config": {"b": {"c": [{"d": 1}]}, "a": None}}
    effopd("write-config", "--spec", json.dumps(spec), "--out", "config.yaml", folder=tmp_path).succeeded()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == spec["config"]
