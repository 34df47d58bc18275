"""Processes that judge answers by libraries that may take for ever: one for each thread that asks, ended when late.

A worker is a module of this package that reads a JSON object a line from its input, writes one a line to its output
until its input ends, and begins with an empty line when it is ready.
"""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from effopd.common.errors import UserError

START_SECONDS = 120.0


class Workers:
    """The workers of one module. Any thread may ask, and so may a process that was forked."""

    def __init__(self, module: str, package: str, environment: Mapping[str, str] | None = None) -> None:
        self.module = module
        self.package = package  # what messages name
        self.environment = environment or {}
        self.idle: queue.LifoQueue[_Worker] = queue.LifoQueue()

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """The reply of an idle worker; None if there was none in time, and then that worker is ended.

        Raises UserError if no worker can be started.
        """
        try:
            worker = self.idle.get_nowait()
        except queue.Empty:
            worker = _Worker(self)
        if worker.owner != os.getpid():  # made before a fork: its pipes are the other process's too
            return self.ask(question, seconds)
        reply = worker.ask(question, seconds)
        if reply is None:
            worker.end()
        else:
            self.idle.put(worker)
        return reply


class _Worker:
    """A process that answers. Libraries limit their time by signals, which only a main thread has."""

    def __init__(self, workers: Workers) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-m", workers.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **workers.environment},
        )
        if self._line(START_SECONDS) is None:
            self.end()
            raise UserError(
                f"the process that runs {workers.package} did not start. Its own message is above; most often memory "
                "is short."
            )

    def ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any] | None:
        """The reply, or None if there was none in time."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._line(seconds)
        try:
            return None if line is None else json.loads(line)
        except ValueError:  # a library wrote to its output
            return None

    def _line(self, seconds: float) -> bytes | None:
        """The next line of the process. Its lines are written whole: one that begins in time also ends."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return (self.process.stdout.readline() or None) if ready else None

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
