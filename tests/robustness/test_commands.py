"""The harness itself: it must fail where a command ends wrongly."""

from __future__ import annotations

import errno
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save

import commands
from commands import Ending, effopd, untouched
from effopd.common.errors import describe_os_error


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
