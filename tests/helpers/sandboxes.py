"""Sandboxes for tests, those without namespaces included, wherever the tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

import effopd
from effopd.sandbox.client import LAYERS, Limits, Outcome, Sandbox, SandboxError
from effopd.sandbox.protocol import packed, receive, send, unpacked

LIMITS = Limits(cpu_seconds=1, wall_seconds=10, memory_mb=256, file_mb=4, processes=8, open_files=32, output_kb=64)
FULL, FALLBACK = LAYERS, ("landlock", "seccomp")
SOURCES = str(Path(effopd.__file__).parents[1])
SERVER = f"""
import dataclasses, sys
sys.path.append({SOURCES!r})
from effopd.sandbox.client import Limits, Sandbox
from effopd.sandbox.protocol import packed, receive, send, unpacked
settings = receive(0)
with Sandbox(Limits(**settings["limits"]), layers=settings["layers"]) as sandbox:
    send(1, {{"isolation": sandbox.isolation}})
    while (request := receive(0)) is not None:
        outcome = dataclasses.asdict(sandbox.run(request["program"], unpacked(request["given"]), unpacked(request["later"])))
        send(1, {{k: packed(v) if isinstance(v, bytes) else v for k, v in outcome.items()}})
"""


class Elsewhere:
    """A sandbox in a process whose Python lies where every user can read it: a root without namespaces needs that."""

    def __init__(self, limits: Limits, layers: tuple[str, ...]) -> None:
        python = os.path.realpath(sys.executable)
        command = f'mount --bind "{sys.base_prefix}" /mnt && exec "/mnt/{os.path.relpath(python, sys.base_prefix)}" -I -c "$0"'
        self.process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", command, SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        send(self.process.stdin.fileno(), {"limits": asdict(limits), "layers": layers})
        hello = receive(self.process.stdout.fileno())
        if hello is None:
            self.__exit__()
            raise SandboxError("not here")
        self.isolation = tuple(hello["isolation"])

    def run(self, program: str, given: bytes = b"", later: bytes = b"") -> Outcome:
        send(self.process.stdin.fileno(), {"program": program, "given": packed(given), "later": packed(later)})
        reply = receive(self.process.stdout.fileno())
        content = {name: unpacked(reply.pop(name)) for name in ("output", "error", "result")}
        return Outcome(**reply, **content)

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@contextmanager
def sandbox_with(layers, limits=LIMITS):
    """A sandbox with exactly these layers, or skip the test where this machine does not permit them."""
    try:
        sandbox = Sandbox(limits, layers=layers)
    except SandboxError as error:
        if os.getuid() != 0 or shutil.which("unshare") is None:
            pytest.skip(str(error))
        try:
            sandbox = Elsewhere(limits, layers)
        except SandboxError:
            pytest.skip(str(error))
    with sandbox:
        if sandbox.isolation != tuple(layers):
            pytest.skip(f"this machine permits {sandbox.isolation} only")
        yield sandbox
