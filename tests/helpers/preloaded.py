"""Starts workflows as forks of one process that has loaded what every workflow imports: seconds each, hundreds of times.

A workflow from here is `snakemake` on the command line but for where its imports come from: a process of its own with
its own session, environment, folder and output. Its warm process is its child as ever, dies with it, and forks its
jobs; it too starts with torch and the rest loaded. Libraries alone are shared: this package is imported anew.

A script that two ranks run starts here, too, as `torch.distributed.run` would start it.
"""

from __future__ import annotations

import array
import functools
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

from effopd.artifacts import fingerprints
from effopd.common.processes import die_with_parent
from effopd.workflow import fork_server as warm

OURS = ("effopd", "snakemake_logger_plugin_effopd")


class Process:
    """A workflow that was started here, to be handled as a `subprocess.Popen` with its output in a pipe."""

    def __init__(self, pid: int, output: int, ending: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._output, self._ending = output, ending

    def poll(self) -> int | None:
        if self.returncode is None:
            self._ending.setblocking(False)
            try:
                self.returncode = int(self._ending.recv(16) or b"-9")  # nothing: the parent of all was lost
            except BlockingIOError:
                pass
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """All of its output, once everything that could write there has ended."""
        deadline = None if timeout is None else time.monotonic() + timeout
        received = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while True:
                left = None if deadline is None else max(deadline - time.monotonic(), 0)
                if not selector.select(left):
                    raise subprocess.TimeoutExpired("snakemake", timeout or 0, bytes(received))
                if not (part := os.read(self._output, 2**16)):
                    break
                received += part
        while self.poll() is None:
            time.sleep(0.01)
        os.close(self._output)
        self._ending.close()
        return received.decode(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Starter:
    """The process that has loaded everything. It ends with the one that made it."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), str(os.getpid())],
            env={**os.environ, **warm.MALLOC, **warm.ONE_THREAD},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

    def start(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> Process:
        """Start `snakemake` with arguments, or a Python script with its own on two ranks."""
        output, its_output = os.pipe()
        ending, its_ending = socket.socketpair()
        request = json.dumps({"arguments": arguments, "folder": str(folder), "environment": environment})
        file = os.memfd_create("request")  # an environment can be larger than a packet
        os.write(file, request.encode())
        socket.send_fds(self._channel, [b"start"], [file, its_output, its_ending.fileno()])
        os.close(file)
        os.close(its_output)
        its_ending.close()
        return Process(int(self._channel.recv(16)), output, ending)


@functools.cache
def starter() -> Starter:
    """The one of this process."""
    return Starter()


def start_ranks(*command: str | Path) -> Process:
    """Start a Python script and its arguments on two ranks."""
    return starter().start([str(word) for word in command], Path.cwd(), dict(os.environ))


def run_ranks(*command: str | Path, timeout: float = 400) -> None:
    """Run a Python script with its arguments on two ranks, to an end without an error."""
    process = start_ranks(*command)
    try:
        output, _ = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output


def serve(channel: socket.socket) -> None:
    """Fork a workflow for each request."""
    from snakemake.cli import get_argument_parser

    get_argument_parser()  # loads the plugins
    import snakemake.storage  # noqa: F401  (not before the command line)

    warm.preload()
    for path in Path(fingerprints.__file__).parents[1].rglob("*.py"):
        fingerprints.read_code(path.read_bytes())  # by content: what a test edits is read anew
    kept = ("effopd.artifacts", "effopd.common", "effopd.workflow.fork_server")  # what this process goes on with
    for name in [name for name in sys.modules if name.split(".")[0] in OURS and not name.startswith(kept)]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # collections in the forks then pass over all of it
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not channel:
                pid, ending = key.data
                _, status = os.waitpid(pid, 0)
                ending.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                selector.unregister(key.fd)
                os.close(key.fd)
                ending.close()
                continue
            word, (*descriptors,), _, _ = socket.recv_fds(channel, 16, 3)
            if not word:
                return
            file, output, ending_fd = descriptors
            request = json.loads(os.pread(file, os.fstat(file).st_size, 0))
            if (pid := os.fork()) == 0:
                become_workflow(request, output)
            channel.send(str(pid).encode())
            os.close(file)
            os.close(output)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, socket.socket(fileno=ending_fd)))


def become_workflow(request: dict[str, object], output: int) -> NoReturn:
    """What a fork does: be the ranks of a script, or make the process that may turn into its warm one and be `snakemake`."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["arguments"]
    sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[0].endswith(".py"):
        be_ranks()

    mine, its = socket.socketpair()
    parent = os.getpid()
    if (server := os.fork()) == 0:
        mine.close()
        be_warm_process(its, parent)
    its.close()
    os.set_inheritable(mine.fileno(), False)
    warm.spawn = lambda listener: Server(mine, server, listener)

    from snakemake.cli import main

    main()
    sys.exit(0)


def be_ranks() -> NoReturn:
    """Fork two ranks that run the script, and end when both have; if one fails, end the other."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    parent, ranks = os.getpid(), set[int]()
    for rank in ("0", "1"):
        if (child := os.fork()) == 0:
            die_with_parent(parent)
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            runpy.run_path(sys.argv[0], run_name="__main__")
            os._exit(0)
        ranks.add(child)
    failed = False
    while ranks:
        child, status = os.wait()
        ranks.discard(child)
        if status and not failed:
            failed = True
            for other in ranks:
                os.kill(other, signal.SIGKILL)
    os._exit(failed)


class Server:
    """The warm process of a workflow, as `effopd.workflow.session` handles it."""

    def __init__(self, channel: socket.socket, pid: int, listener: socket.socket) -> None:
        self.pid = pid
        channel.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def be_warm_process(channel: socket.socket, parent: int) -> NoReturn:
    """Serve where the workflow says so; end with it if it does not."""
    os.setpgid(0, 0)
    die_with_parent(parent)
    word, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    if word:
        warm.serve(descriptors[0], parent)
    os._exit(0)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    serve(socket.socket(fileno=int(sys.argv[1])))
