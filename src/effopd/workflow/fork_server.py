"""Warm jobs: one server process loads the libraries once and forks a child for each job.

Importing torch, transformers and DeepSpeed costs seconds, more than most of the jobs of a small experiment. The server
belongs to one workflow: it dies with it, and its children with it. A job sees its own arguments, environment, folder
and files; nothing else is shared, since nothing has computed before the fork. Linux only, and never with a GPU, whose
driver does not survive a fork; everywhere else jobs start cold.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import traceback
from typing import Any, NoReturn

from effopd.common.errors import describe_os_error
from effopd.common.formatting import one_line
from effopd.common.processes import LOST, die_with_parent

MALLOC = {  # small tensors are kept when freed, which saves page faults; large ones go back, lest they leave holes
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}
JOBS = {  # what most jobs are, and what they name only where they use it
    "stages": (
        "collect_run", "evaluate", "evaluate_candidates", "predict_weights", "select_candidate", "train_segment",
    ),
    "engines": ("transformers",),
    "parts": ("extrapolation",),
    "tasks": ("arithmetic",),
}  # fmt: skip
_REQUEST = {"arguments", "environment", "folder"}
_KILLED = 128  # and the number of the signal: the exit status of a killed job
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def supported() -> bool:
    """Whether jobs can be forks of one process here."""
    return sys.platform == "linux"


def start_server() -> subprocess.Popen[bytes]:
    """Start the server as a child of this process and announce its address to later children in EFFOPD_WARM."""
    address = f"effopd-{os.getpid()}-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + address)  # abstract: leaves no file behind
        listener.listen(128)
        server = spawn(listener)
    os.environ["EFFOPD_WARM"] = address
    return server


def spawn(listener: socket.socket) -> subprocess.Popen[bytes]:
    """Start a server that listens there."""
    environment = {**os.environ, **MALLOC, **ONE_THREAD}
    environment.pop("EFFOPD_WARM", None)
    return subprocess.Popen(
        [sys.executable, "-m", "effopd.workflow.fork_server", str(listener.fileno()), str(os.getpid())],
        env=environment,
        pass_fds=[listener.fileno()],
        stdin=subprocess.DEVNULL,
        process_group=0,  # Ctrl-C is the workflow's to handle
    )


def run_warm(address: str, arguments: list[str]) -> int | None:
    """Run a command in a fork of the server and return its exit status; None where no server answers (start cold).

    If this process dies, the server ends the job.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect("\0" + address)
    except OSError:
        return None
    try:
        request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
        payload = json.dumps(request).encode()
        descriptors = array.array("i", [0, 1, 2])
        connection.sendmsg(
            [struct.pack("!I", len(payload))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors.tobytes())]
        )
        connection.sendall(payload)
    except OSError:  # the folder is gone, a standard file is closed, or the server is: it has no whole request
        connection.close()
        return None
    answer = _receive(connection, 4)
    if answer is None:
        print("error: the warm process of this job was lost; run the workflow again", file=sys.stderr)
        return LOST
    status = int(struct.unpack("!i", answer)[0])
    if status > _KILLED:
        why = f"error: this job was killed ({signal.strsignal(status - _KILLED)})."
        print(f"{why} If memory ran out, run fewer jobs at once. Then run the workflow again.", file=sys.stderr)
    return status


def _receive(connection: socket.socket, count: int) -> bytes | None:
    """Exactly `count` bytes, or None where the other side closed first."""
    received = b""
    while len(received) < count:
        try:
            part = connection.recv(count - len(received))
        except ConnectionError:
            return None
        if not part:
            return None
        received += part
    return received


def _accept(listener: socket.socket) -> tuple[socket.socket, dict[str, Any], list[int]] | None:
    """A connection of this user, its request, and its standard files; None for any other, and for no valid request."""
    connection, _ = listener.accept()
    descriptors: list[int] = []
    try:
        if (request := _read_request(connection, descriptors)) is not None:
            return connection, request, descriptors
    except (OSError, ValueError, struct.error):
        pass
    for held in descriptors:
        os.close(held)
    connection.close()
    return None


def _read_request(connection: socket.socket, descriptors: list[int]) -> dict[str, Any] | None:
    """The request that comes through a connection, whose standard files are added to `descriptors`."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    if user != os.getuid():  # an abstract address can be reached by every user of the machine
        return None
    header, received, _, _ = socket.recv_fds(connection, 4, 3)
    descriptors += received
    payload = _receive(connection, struct.unpack("!I", header)[0])
    if payload is None or len(descriptors) != 3:
        return None
    request = json.loads(payload)
    return request if isinstance(request, dict) and request.keys() == _REQUEST else None


def _run_child(request: dict[str, Any], descriptors: list[int], server: int) -> NoReturn:
    """What a forked child does: become the job. However it ends, its own log says why."""
    status = 1
    try:
        os.setpgid(0, 0)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
        die_with_parent(server)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.environ.pop("EFFOPD_WARM", None)
        os.chdir(request["folder"])
        sys.argv = ["effopd", *request["arguments"]]
        from effopd.cli.commands import run_verb

        status = run_verb(request["arguments"])
    except OSError as error:
        status = 2
        print(f"error: {one_line(describe_os_error(error))}", file=sys.stderr)
    except BaseException as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def serve(descriptor: int, parent: int) -> None:
    """Fork a child for each request, until the parent ends."""
    import gc

    server = os.getpid()
    die_with_parent(parent)
    listener = socket.socket(fileno=descriptor)
    preload()
    gc.freeze()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if selector.get_map().get(key.fd) is not key:
                continue  # closed while this batch of events was handled
            if key.fileobj is listener:
                if (accepted := _accept(listener)) is None:
                    continue
                connection, request, descriptors = accepted
                try:
                    child = os.fork()
                except OSError:  # no memory or process left: this job is lost, the others are not
                    for held in (*descriptors, connection.detach()):
                        os.close(held)
                    continue
                if child == 0:
                    selector.close()
                    listener.close()
                    connection.close()
                    _run_child(request, descriptors, server)
                for held in descriptors:
                    os.close(held)
                ended = os.pidfd_open(child)
                selector.register(ended, selectors.EVENT_READ, (child, connection, ended))
                selector.register(connection, selectors.EVENT_READ, (child, connection, ended))
            else:
                child, connection, ended = key.data
                if key.fd == ended:
                    _, status = os.waitpid(child, 0)
                    code = os.waitstatus_to_exitcode(status)
                    try:
                        connection.sendall(struct.pack("!i", _KILLED - code if code < 0 else code))
                    except OSError:
                        pass  # the client is gone; so is its job
                    selector.unregister(ended)
                    os.close(ended)
                    if connection.fileno() in selector.get_map():
                        selector.unregister(connection)
                    connection.close()
                else:  # the client ended first: so does its job
                    selector.unregister(connection)
                    _kill_group(child)


def _kill_group(leader: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(leader, signal.SIGKILL)


def preload() -> None:
    """Import what jobs use, and look up what each would look up alike.

    Nothing else: a thread or a device opened here would not survive the fork.
    """
    import jsonschema  # noqa: F401 - what manifests are checked with
    import matplotlib.pyplot  # noqa: F401
    import pyarrow.dataset  # noqa: F401 - what pandas imports at its first parquet file
    import sklearn.manifold  # noqa: F401
    import torch

    torch.set_num_threads(1)
    import transformers.models.qwen3.modeling_qwen3  # noqa: F401

    import effopd.cli.commands  # noqa: F401
    from effopd.artifacts.manifests import package_versions
    from effopd.common import registry
    from effopd.training.deepspeed_compat import import_deepspeed

    import_deepspeed(on_cpu=True)
    for kind, names in JOBS.items():
        for name in names:
            registry.load(kind, name)
    package_versions()
    with contextlib.suppress(ImportError):  # no documented function
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("qwen3")  # compiles some 900 regular expressions, those of all architectures


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
