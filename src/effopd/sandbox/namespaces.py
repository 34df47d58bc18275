"""A world of its own for a process: new user, process, network, mount, IPC and host-name namespaces and a bare root.

Imports the standard library alone: it runs in the sandbox's own interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from effopd.sandbox import kernel
from effopd.sandbox.folders import MOST_ENTRIES

NOBODY = 65534  # the user that programs run as, as they see it
WORK = "/sandbox"
DEVICES = ("null", "full", "random", "urandom")  # not zero: to map it is to have memory of no process
_ALL = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
)  # fmt: skip
# Folders that exist and hold nothing the new root needs: one of them is where it is built.
_BUILDING_PLACES = ("/tmp", "/mnt", "/srv", "/var", "/home", "/run")


def run_inside(serve: Callable[[], NoReturn], readable: Sequence[str], hidden: Sequence[str]) -> str:
    """Run `serve` as process 1 of new namespaces whose root holds `readable` alone, and wait for it to end.

    Of a path in `hidden` nothing is there, but for what is readable within it.

    Returns "" once it has ended, or why the kernel or a security module did not permit it; then nothing was run.
    """
    told, tell = os.pipe()
    go, may_go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        os.close(may_go)
        _leave(serve, readable, hidden, go, tell)
    os.close(tell)
    os.close(go)
    problem = os.read(told, 4096).decode()
    if problem == "mine":  # the namespaces are there: give them their users
        try:
            _write_maps(child)
            os.write(may_go, b"+")
        except OSError as error:
            os.close(may_go)
            os.waitpid(child, 0)
            return _words(error)
        problem = os.read(told, 4096).decode()
    os.close(may_go)
    os.close(told)
    os.waitpid(child, 0)
    return "" if problem == "ready" else problem or "the process that was to run inside ended"


def _leave(
    serve: Callable[[], NoReturn], readable: Sequence[str], hidden: Sequence[str], go: int, tell: int
) -> NoReturn:
    """What the child does: leave for new namespaces, and become the parent of process 1 there."""
    try:
        kernel.unshare(_ALL)
        os.write(tell, b"mine")
        if os.read(go, 1) != b"+":
            os._exit(1)
        first = os.fork()
        if first == 0:
            _build_root(readable, hidden)
            os.write(tell, b"ready")
            os.close(tell)
            serve()
        os.close(tell)
        os.waitpid(first, 0)
    except OSError as error:
        os.write(tell, _words(error).encode())
        os._exit(1)
    os._exit(0)


def _write_maps(process: int) -> None:
    """Say who the users of a process's new namespace are outside.

    For root, programs become the real nobody; anybody else can map but one user, who is nobody inside and the caller
    outside.
    """
    own_user, own_group = os.getuid(), os.getgid()
    if own_user == 0:
        try:
            for kind in ("uid", "gid"):
                _write(f"/proc/{process}/{kind}_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
        except OSError:  # itself in a namespace where there is no nobody
            pass
        else:
            return
    _write(f"/proc/{process}/setgroups", "deny")
    _write(f"/proc/{process}/uid_map", f"{NOBODY} {own_user} 1\n")
    _write(f"/proc/{process}/gid_map", f"{NOBODY} {own_group} 1\n")


def _build_root(readable: Sequence[str], hidden: Sequence[str]) -> None:
    """Make a root with a Python, a few devices, its own /proc and nothing else, and move there."""
    free = (place for place in _BUILDING_PLACES if not any(path.startswith(f"{place}/") for path in readable))
    new = next(place for place in free if os.path.isdir(place))
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    caches = {path: _content(path) for path in ("/etc/ld.so.cache",)}  # so that libraries are found
    kernel.mount("none", new, "tmpfs", kernel.MS_NOSUID, "size=4m,mode=0755")
    for path in sorted({*readable, *hidden}, key=len):  # a folder before what lies within it
        if path in readable:
            _show(path, new + path)
        elif os.path.isdir(new + path) and not os.path.islink(new + path):
            kernel.mount("none", new + path, "tmpfs", kernel.MS_NOSUID, "size=4m,mode=0755")
        elif os.path.isfile(new + path):
            kernel.mount("/dev/null", new + path, "", kernel.MS_BIND)
    for path, content in caches.items():
        os.makedirs(os.path.dirname(new + path), exist_ok=True)
        _write(new + path, content)
    os.mkdir(f"{new}/dev")
    for device in DEVICES:
        _write(f"{new}/dev/{device}", "")
        kernel.mount(f"/dev/{device}", f"{new}/dev/{device}", "", kernel.MS_BIND)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{new}/dev/{name}")
    os.symlink(WORK, f"{new}/dev/shm")  # for semaphores: in the work folder, and gone with it
    os.mkdir(f"{new}/proc")
    kernel.mount("proc", f"{new}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    os.makedirs(new + WORK)
    if not os.path.isdir(f"{new}/tmp"):  # unless a readable path lies there
        os.symlink(WORK, f"{new}/tmp")
    kernel.change_root(new)
    _write("/proc/sys/user/max_user_namespaces", "0")  # no namespaces within these, where rights would grow back
    kernel.make_read_only("/")


def _show(path: str, place: str) -> None:
    """Put what is at `path` into the new root, at `place`."""
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
        return
    if os.path.isdir(path):
        os.makedirs(place, exist_ok=True)
    elif not os.path.exists(place):
        _write(place, "")
    kernel.mount(path, place, "", kernel.MS_BIND | kernel.MS_REC)


def new_work_folder(megabytes: int) -> None:
    """An empty work folder in memory, in place of the last one."""
    if os.path.ismount(WORK):
        kernel.unmount(WORK)
    flags = kernel.MS_NOSUID | kernel.MS_NODEV
    options = f"size={megabytes}m,nr_inodes={MOST_ENTRIES},mode=0700,uid={NOBODY},gid={NOBODY}"
    kernel.mount("none", WORK, "tmpfs", flags, options)


def _words(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _write(path: str, content: str | bytes) -> None:
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
