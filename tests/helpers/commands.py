"""Runs `effopd` commands on bad input and checks how they end: rightly, or with one clear line.

A command runs in a fork of the test process, which has imported torch and transformers already: a few hundredths of a
second where a new interpreter takes seconds. It has its own working directory, environment and standard files, and a
crash or an endless loop in it ends it alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers  # noqa: F401 - imported once, before any fork

from effopd.cli.commands import run_verb

TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """How a command ended: its exit status, and what it printed to both standard output and standard error."""

    arguments: tuple[str, ...]
    status: int
    output: str

    def succeeded(self) -> str:
        """Assert that it did what it was asked to. Returns its output."""
        assert self.status == 0, self
        assert "Traceback" not in self.output, self
        return self.output

    def refused(self, *words: str) -> str:
        """Assert that it refused its input in one clear line, which contains all of `words`. Returns the line.

        Lines of progress and warnings may stand before it.
        """
        assert self.status == 2, self
        assert "Traceback" not in self.output, self
        errors = [line for line in self.output.splitlines() if re.match(r"(?i)error: ", line)]
        assert len(errors) == 1, self
        line = errors[0]
        assert self.output.rstrip("\n").endswith(line), self  # nothing after it: no second line, no rest of a message
        assert len(line) > len("error: ") + 10, self
        assert line.isprintable(), self
        for word in words:
            assert word in line, (word, self)
        return line

    def right_or_refused(self) -> str:
        """Assert that it either succeeded or refused. Returns its output, or the line."""
        return self.succeeded() if self.status == 0 else self.refused()


def effopd(
    *arguments: str | Path,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT_SECONDS,
    fresh: bool = False,
) -> Ending:
    """Run `effopd` with `arguments` in the working directory `folder`.

    `environment` adds to this process's. With `fresh` it runs in a new interpreter, as what trains has to: the process
    group that another test has set up in this process does not survive a fork. Raises AssertionError if it takes longer
    than `timeout` seconds.
    """
    words = tuple(map(str, arguments))
    with tempfile.TemporaryFile() as captured:
        child = os.fork()
        if child == 0:
            _become(words, folder, environment or {}, captured.fileno(), fresh)
        status = _wait(child, timeout)
        captured.seek(0)
        output = captured.read().decode("utf-8", "backslashreplace")
    assert status is not None, f"effopd {' '.join(words)} did not end within {timeout:g} s; so far it said:\n{output}"
    return Ending(words, status, output)


def _become(arguments: tuple[str, ...], folder: Path, environment: Mapping[str, str], output: int, fresh: bool) -> None:
    """What the forked child does: run the command and leave, without any of the test process's clean-up."""
    status = 1
    try:
        os.setpgid(0, 0)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, output), (2, output)):
            os.dup2(source, target)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
        os.environ.update(environment)
        os.environ.pop("EFFOPD_WARM", None)
        os.chdir(folder)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "effopd", *arguments])
        torch.set_num_threads(1)
        status = run_verb(list(arguments))
    finally:
        os._exit(status)


def _wait(child: int, timeout: float) -> int | None:
    """The exit status of a child (128 + the number of the signal that ended it), or None after killing it."""
    ended_by = time.monotonic() + timeout
    pause = 0.002
    while time.monotonic() < ended_by:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def tree(folder: Path) -> dict[str, str]:
    """Everything below a folder: its kind, its permissions, and a digest of its content or the target of the link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISREG(status.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = ""
        found[str(path.relative_to(folder))] = f"{stat.filemode(status.st_mode)} {content}"
    return found


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Assert that a block of code changes nothing below these folders, whatever links lead there."""
    before = {folder: tree(folder) for folder in folders}
    yield
    for folder, content in before.items():
        assert tree(folder) == content
