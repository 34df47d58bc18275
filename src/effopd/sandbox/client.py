"""The caller's side of the sandbox."""

from __future__ import annotations

import atexit
import glob
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import effopd
from effopd.common.errors import UserError
from effopd.sandbox import folders, supervisor
from effopd.sandbox.protocol import packed, receive, send, unpacked

LAYERS = ("namespaces", "landlock", "seccomp")
# Programs and libraries of the system. Not the rest of /usr: projects and data may lie there.
SYSTEM_PATHS = (
    "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libexec", "/usr/share/zoneinfo",
    "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store",
)  # fmt: skip
PATIENCE_SECONDS = 60.0  # beyond a program's own wall time, before the supervisor itself counts as lost


class SandboxError(UserError):
    """The sandbox cannot be set up here."""


@dataclass(frozen=True)
class Limits:
    """What a program may use; each is for one run."""

    cpu_seconds: int  # of each of its processes
    wall_seconds: float
    memory_mb: int  # of each of its processes (address space), and of all together (memory in use)
    file_mb: int  # of each file, and of the work folder where it lies in memory
    processes: int  # and threads
    open_files: int
    output_kb: int  # of standard output


@dataclass(frozen=True)
class Outcome:
    """How a program ended, and what it wrote."""

    ended: str  # the limit that ended it: "cpu time", "wall time", "memory", "processes", "files", "output"; else ""
    code: int  # exit status; -n after signal n
    output: bytes
    error: bytes  # the end of standard error
    result: bytes  # what it wrote to descriptor 3
    seconds: float


class Sandbox:
    """Runs Python programs that may do anything, one after the other.

    Each runs in a process of its own, in an empty folder, with no environment, the standard library alone and the
    `limits`; whatever it started has ended when `run` returns. `isolation` names the further layers that are up.
    Namespaces come first; if they are not permitted, Landlock and seccomp must hold the program together, and it
    must not be root's. Raises SandboxError if neither can be had or where, with `required`, namespaces cannot.
    """

    def __init__(self, limits: Limits, *, required: bool = False, layers: Collection[str] = LAYERS) -> None:
        self.limits, self._required, self._layers = limits, required, tuple(layers)
        self._start()

    def _start(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="effopd-sandbox-")
        packages = str(Path(effopd.__file__).parents[1])
        python = os.path.realpath(sys.executable)
        start = f"import sys; sys.path.append({packages!r}); from {supervisor.__name__} import main; main()"
        try:
            self._process = subprocess.Popen(
                [python, "-I", "-S", "-c", start],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={},
                start_new_session=True,
            )
        except OSError as error:
            folders.remove(self._folder)
            raise SandboxError(f"the sandbox cannot be started: {error}. Free memory and processes.") from error
        settings = {
            "limits": asdict(self.limits),
            "python": python,
            "readable": _readable(python),
            "hidden": _hidden(),
            "layers": self._layers,
            "required": self._required,
            "folder": self._folder,
        }
        hello = self._exchange(settings, PATIENCE_SECONDS)
        if hello is None or "layers" not in hello:
            self.close()
            reason = (hello or {}).get("refused", "its own message is above")
            raise SandboxError(
                f"the sandbox cannot be set up: {reason}. Permit user namespaces, or run as an ordinary user on a "
                "kernel with Landlock and with `task.sandbox.isolation: auto`."
            )
        self.isolation: tuple[str, ...] = tuple(hello["layers"])
        self.refusal: str = hello["refusal"]  # why there are no namespaces; "" if there are

    def run(self, program: str, given: bytes = b"", later: bytes = b"") -> Outcome:
        """Run a program on standard input `given`, then `later` once it has written to descriptor 3.

        If the sandbox breaks it is started anew and the program is run once more. If it breaks again, the outcome's
        `ended` says so, and the sandbox is new again for the next program: no program can end its caller.
        """
        request = {"program": packed(program.encode(errors="replace")), "input": packed(given), "later": packed(later)}
        broken = ""
        for _ in range(2):
            reply = self._exchange(request, self.limits.wall_seconds + PATIENCE_SECONDS)
            if reply is not None and "broken" not in reply:
                content = {name: unpacked(reply[name]) for name in ("output", "error", "result")}
                return Outcome(reply["ended"], reply["code"], seconds=reply["seconds"], **content)
            broken = "it was lost" if reply is None else reply["broken"]
            self.close()
            try:
                self._start()
            except SandboxError as error:
                broken = str(error)
        return Outcome(f"the sandbox broke twice: {broken}", 1, b"", b"", b"", 0.0)

    def close(self) -> None:
        """End the sandbox with all that runs in it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # it ends by itself
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()
        folders.remove(self._folder)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The reply to a message; None if the supervisor has ended or does not answer in time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.stdin.closed:
            return None
        try:
            send(self._process.stdin.fileno(), message)
        except BrokenPipeError:
            return None
        ready = select.poll()  # not select: descriptors may be many
        ready.register(self._process.stdout, select.POLLIN)
        if not ready.poll(seconds * 1000):
            os.killpg(self._process.pid, signal.SIGKILL)
            return None
        return receive(self._process.stdout.fileno())


_idle: dict[tuple[int, Limits, bool], list[Sandbox]] = {}  # by the process that started them, and what they were for


@contextmanager
def borrowed(limits: Limits, *, required: bool = False) -> Iterator[Sandbox]:
    """A sandbox for a while: one that this process has used before, if one is free. They end with the process."""
    idle = _idle.setdefault((os.getpid(), limits, required), [])
    sandbox = idle.pop() if idle else Sandbox(limits, required=required)
    yield sandbox
    idle.append(sandbox)


def close_idle() -> None:
    """End the sandboxes that this process has used and are free."""
    for (process, *_), idle in _idle.items():
        while process == os.getpid() and idle:
            idle.pop().close()


atexit.register(close_idle)


def _base() -> dict[str, str]:
    """The Python below any virtual environment, as `sysconfig` asks for it."""
    return {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}


@cache
def _readable(python: str) -> list[str]:
    """Paths that programs may read: this Python with its standard library, the system's programs and libraries."""
    own = {python, *(sysconfig.get_path(name, vars=_base()) for name in ("stdlib", "platstdlib"))}
    library = sysconfig.get_config_var("LIBDIR")
    own |= {str(library)} if library else set()
    return sorted(path for path in {*SYSTEM_PATHS, *map(os.path.realpath, own)} if os.path.exists(path))


def _hidden() -> list[str]:
    """Paths of which programs see nothing, wherever they lie: the project, its environment, the user's own files."""
    packages = [sysconfig.get_path(name, vars=_base()) for name in ("purelib", "platlib")]
    packages += glob.glob("/usr/lib*/python3*/*-packages")
    places = [*packages, os.getcwd(), str(Path(effopd.__file__).parents[1]), os.path.expanduser("~")]
    places += [sys.prefix] if sys.prefix != sys.base_prefix else []
    return sorted({os.path.realpath(place) for place in places} - {"/"})
