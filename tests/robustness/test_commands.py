"""The harness itself: it must fail where a command ends wrongly."""

from __future__ import annotations

import errno
import time

import commands
import pytest
from commands import Ending, effopd, untouched

from effopd.runtime.errors import describe_os_error


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
