"""A job in a fork of the warm server: however it ends, before its verb begins too, its log says why."""

from __future__ import annotations

import os
import signal
import sys
import tempfile

import pytest

from commands import Ending
from effopd.cli import commands as cli
from effopd.workflow import fork_server as warm

REQUEST = {"arguments": ["--version"], "environment": dict(os.environ), "folder": "/"}


def run_child(request: dict) -> Ending:
    """Run a request as the server does once it has forked."""
    server = os.getpid()
    with tempfile.TemporaryFile() as log:
        if (child := os.fork()) == 0:
            signal.alarm(60)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # not pytest's
            warm._run_child(request, [os.open(os.devnull, os.O_RDONLY), log.fileno(), log.fileno()], server)
        _, status = os.waitpid(child, 0)
        log.seek(0)
        return Ending(tuple(request["arguments"]), os.waitstatus_to_exitcode(status), log.read().decode())


def test_a_job_runs():
    assert "version" in run_child(REQUEST).succeeded()


@pytest.mark.parametrize(
    "request_",
    [{**REQUEST, "folder": "/nowhere"}, {**REQUEST, "folder": "/etc/passwd"}, {**REQUEST, "folder": "a" * 9999}],
)
def test_a_folder_that_is_none_is_said(request_):
    run_child(request_).refused(request_["folder"][:100])


@pytest.mark.parametrize("request_", [{**REQUEST, "environment": {"A": "\0"}}, {**REQUEST, "folder": "a\0"}])
def test_a_bug_before_the_verb_begins_is_said(request_):
    ending = run_child(request_)
    assert ending.status == 1
    assert "error: ValueError: embedded null byte" in ending.output


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device", "x"), OSError("why"), MemoryError(), SystemExit(3),
                                    KeyError("k"), BrokenPipeError()])  # fmt: skip
def test_whatever_a_verb_raises_is_said(monkeypatch, raised):
    def fail(*args, **kwargs):
        raise raised

    monkeypatch.setattr(cli.main, "main", fail)
    ending = run_child(REQUEST)
    assert ending.status in (1, 2)
    assert ending.output.splitlines()[-1].startswith("error: ")
