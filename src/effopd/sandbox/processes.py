"""What processes are there, and what they hold: read from /proc.

Imports the standard library alone: it runs in the sandbox's own interpreter.
"""

from __future__ import annotations

import os
import resource
import signal
import stat

from effopd.sandbox.folders import TooMuchError


def kill(process: int) -> None:
    """Kill a process by its id, if it still runs."""
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        pass


def descendants() -> list[int]:
    """The living processes below this one."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _read(f"/proc/{entry}/stat")):
            state, parent = stat.rsplit(b")", 1)[1].split()[:2]
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(entry))
    found = list(children.get(os.getpid(), ()))
    for process in found:  # grows as it goes
        found += children.get(process, ())
    return found


def removed_bytes(process: int, *, may_hide: bool) -> int:
    """Bytes of open files that have no name any more. Raises TooMuchError if the process hides them and may not."""
    total = 0
    try:
        for name in os.listdir(f"/proc/{process}/fd"):
            try:
                facts = os.stat(f"/proc/{process}/fd/{name}")
            except FileNotFoundError:
                continue  # closed meanwhile
            if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 0:
                total += facts.st_blocks * 512
    except PermissionError:
        if not may_hide:
            raise TooMuchError from None
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    return total


def private_bytes(process: int) -> int:
    """Memory that a process shares with no file."""
    sizes = _read(f"/proc/{process}/statm").split()
    return (int(sizes[1]) - int(sizes[2])) * resource.getpagesize() if sizes else 0


def tasks_of(user: int) -> int:
    """The threads that a user runs now: the kernel's limit counts them all."""
    count = 0
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == user:
                count += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            continue  # it ended meanwhile
    return count


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
