"""The sandbox's own side: starts programs one by one, watches them, and ends all that they started.

Runs in an interpreter of its own, started by `client.Sandbox`: as process 1 of new namespaces where the kernel permits
them, else as an ordinary process. Imports the standard library alone. Programs never share a process with it.
"""

from __future__ import annotations

import os
import platform
import resource
import select
import signal
import time
from typing import Any, NoReturn

from effopd.sandbox import folders, kernel, namespaces, processes
from effopd.sandbox.protocol import packed, receive, send, unpacked

CONTROL, REPLIES, RESULT = 0, 1, 3  # file descriptors: ours, and the one on which programs may hand back a result
TICK_SECONDS = 0.02
LOOKING = 0.1  # most of the time that may go into looking at a work folder on disk
KEPT_STDERR = 4096
PROGRAM = "program.py"
MEGABYTE = 2**20
STACK_BYTES = 100 * MEGABYTE
COUNTED_PER_NAMESPACE = (5, 14)  # the kernel since which a user's processes are counted by user namespace
GOVERNS_TRUNCATION = 3  # the Landlock version since which no file outside can be emptied
# What a program sees: nothing of ours, and the same hashes in every run.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"}
OPTIONS = ("-s", "-S", "-B", "-X", "int_max_str_digits=0")  # whole numbers of any length can be read and printed
# Starts a program as `python program.py` would, without installed packages but with exit() and quit(). The main
# thread's stack may grow to what programs that recurse deeply are given elsewhere; those of others stay small.
BOOTSTRAP = f"""
import _sitebuiltins, builtins, resource, sys
builtins.exit = builtins.quit = _sitebuiltins.Quitter("exit", "Ctrl-D")
most = resource.getrlimit(resource.RLIMIT_STACK)[1]
stack = {STACK_BYTES} if most == resource.RLIM_INFINITY else min(most, {STACK_BYTES})
resource.setrlimit(resource.RLIMIT_STACK, (stack, most))
sys.argv = ["{PROGRAM}"]
__file__ = "{PROGRAM}"
del _sitebuiltins, builtins, most, resource, stack, sys
exec(compile(open(__file__, encoding="utf-8").read(), __file__, "exec"))
"""


def main() -> NoReturn:
    """Read the settings, take shelter as far as the kernel permits, and serve until the other side has gone."""
    settings = receive(CONTROL)
    assert settings is not None
    refusal = "namespaces were not asked for"
    if "namespaces" in settings["layers"]:
        refusal = namespaces.run_inside(
            lambda: Supervisor(settings, refusal="").serve(), settings["readable"], settings["hidden"]
        )
        if not refusal:
            os._exit(0)
    supervisor = Supervisor(settings, refusal)
    if settings["required"] or (lack := supervisor.lack()):
        send(REPLIES, {"refused": refusal if settings["required"] else f"{refusal}; {lack}"})
        os._exit(0)
    supervisor.serve()


class Supervisor:
    """Runs one program at a time, each in an empty work folder.

    `refusal` is why this is not process 1 of new namespaces; empty if it is.
    """

    def __init__(self, settings: dict[str, Any], refusal: str) -> None:
        self.settings, self.limits, self.refusal, self.inside = settings, settings["limits"], refusal, not refusal
        self.readable: list[str] = settings["readable"]
        self.listable: list[str] = []
        if not self.inside:
            resolved = sorted({os.path.realpath(path) for path in self.readable})
            self.readable, self.listable = folders.without_hidden(resolved, settings["hidden"])
        self.layers = ["namespaces"] if self.inside else []
        if "landlock" in settings["layers"] and kernel.landlock_version():
            self.layers.append("landlock")
        if "seccomp" in settings["layers"] and kernel.seccomp_supported():
            self.layers.append("seccomp")
        self.count = 0
        self.becomes_nobody = os.getuid() == 0 and (self.inside or _nobody_can_read(settings["python"]))
        kernel.hide_memory()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # signals that process 1 does not catch miss it
        if not self.inside:
            kernel.adopt_orphans()

    def lack(self) -> str:
        """What is missing to hold a program without namespaces; "" if nothing is."""
        if not {"landlock", "seccomp"} <= set(self.layers) or kernel.landlock_version() < GOVERNS_TRUNCATION:
            return "without them Landlock (of Linux 6.2 or newer) and seccomp are needed, and this kernel lacks one"
        if os.getuid() == 0 and not self.becomes_nobody:
            return "without them root cannot be held, and the user nobody cannot read this Python"
        return ""

    def serve(self) -> NoReturn:
        """Say which layers are up, then run what is asked for."""
        send(REPLIES, {"layers": self.layers, "refusal": self.refusal})
        while (request := receive(CONTROL)) is not None:
            try:
                reply = self.run(unpacked(request["program"]), unpacked(request["input"]), unpacked(request["later"]))
            except Exception as error:  # whatever a program has done to it: the caller starts another sandbox
                reply = {"broken": f"{type(error).__name__}: {error}"}
            send(REPLIES, reply)
        os._exit(0)

    def run(self, program: bytes, given: bytes, later: bytes) -> dict[str, Any]:
        """Run a program on an input; `later` is given once it has written a first byte to its result descriptor."""
        folder = self._new_folder()
        with open(os.path.join(folder, PROGRAM), "wb") as file:
            file.write(program)
        started = time.monotonic()
        pipes = {name: os.pipe() for name in ("input", "output", "error", "result", "failure")}
        if self.becomes_nobody:  # so that the program can open its /dev/stdin
            for descriptor in (pipes["input"][0], pipes["output"][1], pipes["error"][1]):
                os.fchown(descriptor, namespaces.NOBODY, namespaces.NOBODY)
        child = os.fork()
        if child == 0:
            self._become(folder, pipes)
        for name, (read, write) in pipes.items():
            os.close(read if name == "input" else write)
        failure = os.read(pipes["failure"][0], 4096)
        os.close(pipes["failure"][0])
        watch = _Watch(child, self.limits, pipes, given, later, "" if self.inside else folder)
        try:
            if failure:
                raise OSError(failure.decode())
            watch.until_it_ends(started)
        finally:
            self._kill_all()
            watch.drain()
            if not self.inside:
                folders.remove(folder)
        code, usage = watch.status or (0, None)
        seconds = usage.ru_utime + usage.ru_stime if usage is not None else 0.0
        ended = watch.ended
        if not ended and code < 0 and (code == -signal.SIGXCPU or seconds >= self.limits["cpu_seconds"]):
            ended = "cpu time"
        return {
            "ended": ended,
            "code": code,
            "output": packed(bytes(watch.kept["output"])),
            "error": packed(bytes(watch.kept["error"][-KEPT_STDERR:])),
            "result": packed(bytes(watch.kept["result"])),
            "seconds": time.monotonic() - started,
        }

    def _new_folder(self) -> str:
        if self.inside:
            namespaces.new_work_folder(self.limits["file_mb"])
            return namespaces.WORK
        self.count += 1
        folder = os.path.join(self.settings["folder"], str(self.count))
        os.mkdir(folder, 0o700)
        if self.becomes_nobody:
            os.chmod(self.settings["folder"], 0o711)
            os.chown(folder, namespaces.NOBODY, namespaces.NOBODY)
        return folder

    def _become(self, folder: str, pipes: dict[str, tuple[int, int]]) -> NoReturn:
        """What the forked child does: give up all it can, and become the program."""
        failure = pipes["failure"][1]
        try:
            os.setsid()
            os.chdir(folder)
            # the input's pipe was opened first: no descriptor is overwritten before it has been moved
            for target, (name, end) in enumerate((("input", 0), ("output", 1), ("error", 1), ("result", 1))):
                os.dup2(pipes[name][end], target)
            os.closerange(RESULT + 1, failure)
            os.closerange(failure + 1, 2**16)
            self._limit()
            if self.becomes_nobody:
                os.setgroups([])
                os.setresgid(*[namespaces.NOBODY] * 3)
                os.setresuid(*[namespaces.NOBODY] * 3)
            kernel.die_with_parent()
            kernel.drop_capabilities()
            kernel.no_new_privileges()
            if "landlock" in self.layers:
                devices = [f"/dev/{device}" for device in namespaces.DEVICES]
                own = "/proc" if self.inside else "/proc/self/fd"
                readable = [*self.readable, "/etc/ld.so.cache", own]
                kernel.landlock(readable, [folder, *devices], self.listable)
            if "seccomp" in self.layers:
                kernel.refuse_system_calls(in_sight=not self.inside)
            python = self.settings["python"]
            os.execve(python, [python, *OPTIONS, "-c", BOOTSTRAP], ENVIRONMENT)
        except Exception as error:  # whatever it is, this child must not go on as a second supervisor
            os.write(failure, f"the sandbox cannot start the program: {error}".encode())
        os._exit(1)

    def _limit(self) -> None:
        limits = self.limits
        memory, file = limits["memory_mb"] * MEGABYTE, limits["file_mb"] * MEGABYTE
        cpu = limits["cpu_seconds"]
        hard = {
            resource.RLIMIT_CPU: cpu + 1,  # beyond the soft limit, which a program may catch
            resource.RLIMIT_AS: memory,
            resource.RLIMIT_FSIZE: file,
            resource.RLIMIT_NOFILE: limits["open_files"],
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_MEMLOCK: 0,
            resource.RLIMIT_MSGQUEUE: 0,
        }
        release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
        if not self.inside:
            hard[resource.RLIMIT_NPROC] = limits["processes"] + processes.tasks_of(
                namespaces.NOBODY if self.becomes_nobody else os.getuid()
            )
        elif release >= COUNTED_PER_NAMESPACE:
            hard[resource.RLIMIT_NPROC] = limits["processes"] + (0 if self.becomes_nobody else 2)
        for which, most in hard.items():
            _, ceiling = resource.getrlimit(which)
            if ceiling != resource.RLIM_INFINITY:
                most = min(most, ceiling)
            resource.setrlimit(which, (min(most, cpu) if which == resource.RLIMIT_CPU else most, most))

    def _kill_all(self) -> None:
        """End whatever the program has started, and wait until it has ended."""
        while True:
            if self.inside:
                processes.kill(-1)
            else:
                for process in processes.descendants():
                    processes.kill(process)
            try:
                if os.waitpid(-1, 0 if self.inside else os.WNOHANG)[0] == 0:
                    time.sleep(0.001)
            except ChildProcessError:
                return


class _Watch:
    """A running program: feeds it, reads it, and notes how it ended."""

    def __init__(
        self,
        child: int,
        limits: dict[str, Any],
        pipes: dict[str, tuple[int, int]],
        given: bytes,
        later: bytes,
        folder: str,
    ) -> None:
        self.child, self.limits = child, limits
        self.folder = folder  # the work folder, if nothing else limits it as a whole
        self.next_look = 0.0
        self.ended = ""  # the limit that ended it
        self.status: tuple[int, resource.struct_rusage] | None = None
        self.kept = {name: bytearray() for name in ("output", "error", "result")}
        self.reading = {pipes[name][0]: name for name in self.kept}
        self.feeding: int | None = pipes["input"][1]
        self.given, self.later = memoryview(given), later
        for descriptor in (*self.reading, self.feeding):
            os.set_blocking(descriptor, False)

    def until_it_ends(self, started: float) -> None:
        """Return once the program has ended or passed a limit."""
        gone = os.pidfd_open(self.child)
        try:
            while not self.ended and self.status is None:
                for descriptor, event in self._poll(gone):
                    if descriptor == CONTROL and event & (select.POLLHUP | select.POLLERR):
                        os._exit(0)  # nobody waits for the result; process 1 takes all with it
                    if descriptor == self.feeding:
                        self._feed()
                    elif descriptor in self.reading:
                        self._read(descriptor)
                self._reap()
                if self.status is None and not self.ended:
                    self._check(started)
        finally:
            os.close(gone)

    def _poll(self, gone: int) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(CONTROL, 0)
        poll.register(gone, select.POLLIN)
        for descriptor in self.reading:
            poll.register(descriptor, select.POLLIN)
        if self.feeding is not None and (self.given or not self.later):
            poll.register(self.feeding, select.POLLOUT)
        return poll.poll(TICK_SECONDS * 1000)

    def _feed(self) -> None:
        assert self.feeding is not None
        try:
            self.given = self.given[os.write(self.feeding, self.given[: 2**16]) :] if self.given else self.given
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.given, self.later = memoryview(b""), b""
        if not self.given and not self.later:
            os.close(self.feeding)
            self.feeding = None

    def _read(self, descriptor: int) -> None:
        name = self.reading[descriptor]
        try:
            part = os.read(descriptor, 2**16)
        except BlockingIOError:
            return
        if not part:
            del self.reading[descriptor]
            os.close(descriptor)
            return
        kept = self.kept[name]
        kept += part
        if name == "result" and self.later:
            self.given, self.later = memoryview(self.later), b""
        if name == "error":
            del kept[:-KEPT_STDERR]
        elif len(kept) > self.limits["output_kb"] * 1024:
            del kept[self.limits["output_kb"] * 1024 :]
            self.ended = "output"

    def _reap(self) -> None:
        """Note the program's end, and bury orphans."""
        while True:
            try:
                process, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if process == 0:
                return
            if process == self.child:
                self.status = os.waitstatus_to_exitcode(status), usage

    def _check(self, started: float) -> None:
        if time.monotonic() - started > self.limits["wall_seconds"]:
            self.ended = "wall time"
            return
        running = processes.descendants()
        if len(running) > self.limits["processes"]:
            self.ended = "processes"
        elif sum(map(processes.private_bytes, running)) > self.limits["memory_mb"] * MEGABYTE:
            self.ended = "memory"
        elif self.folder and time.monotonic() > self.next_look and self._too_much_on_disk(running):
            self.ended = "files"

    def _too_much_on_disk(self, running: list[int]) -> bool:
        """Whether the work folder and the removed files that are still open exceed the limit."""
        start = time.monotonic()
        try:
            held = folders.size_of(self.folder)
            held += sum(processes.removed_bytes(process, may_hide=process == self.child) for process in running)
        except folders.TooMuchError:
            return True
        self.next_look = time.monotonic() + (time.monotonic() - start) / LOOKING
        return bool(held > (self.limits["file_mb"] + 1) * MEGABYTE)  # a file as large as it may be is beside it

    def drain(self) -> None:
        """Read what is left in the pipes, whose writers are all dead, and close them."""
        while self.reading:
            for descriptor in list(self.reading):
                self._read(descriptor)
        if self.feeding is not None:
            os.close(self.feeding)


def _nobody_can_read(python: str) -> bool:
    """Whether the user nobody can start this Python and import its library."""
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(*[namespaces.NOBODY] * 3)
            os._exit(0 if os.access(python, os.X_OK) and os.access(os.__file__, os.R_OK) else 1)
        except OSError:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
