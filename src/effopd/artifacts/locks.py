"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from effopd.common.errors import ArtifactError, UserError
from effopd.common.progress import say
from effopd.common.strict_json import parse_json

LOCK, CLAIM = ".lock", ".workflow.lock"
LOOK_SECONDS = 0.2
SINCE = "%Y-%m-%d %H:%M:%S"
_NO_LOCK = "{} is not a file of its own, as a lock has to be. Move it away, then run the command again."


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Work on a folder alone. A job that outlived its killed workflow is waited for; what it wrote is then reused."""
    folder.mkdir(parents=True, exist_ok=True)
    with _open(folder / LOCK) as handle:
        if not _try_lock(handle):
            say(f"waiting for another job that is still writing {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def claim_results(folder: Path, log: str | None = None) -> IO[str]:
    """Claim a results folder for one workflow, for as long as the returned file is open.

    `log` is where the workflow writes what it does, relative to the folder that `folder` is in; if it is None, that
    of the last workflow stays on record. Raises UserError, naming the holder, if another workflow has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = _open(folder / CLAIM)
    if not _try_lock(handle):
        time.sleep(LOOK_SECONDS)  # perhaps somebody only looked whether it is claimed
        if not _try_lock(handle):
            holder = _read_claim(handle)
            raise UserError(
                f"another workflow (process {holder.get('pid')}, since {holder.get('since')}) is working on {folder}. "
                "Wait for it or stop it, then run the command again."
            )
    entry = {"pid": os.getpid(), "since": time.strftime(SINCE), "log": log or _read_claim(handle).get("log")}
    handle.seek(0)
    handle.truncate()
    handle.write(json.dumps(entry))
    handle.flush()
    return handle


@dataclass(frozen=True)
class Claim:
    """The workflow that works on a results folder or, if none does, the last one."""

    running: bool
    pid: int
    since: str  # local time, as SINCE
    log: Path | None

    @property
    def started(self) -> float:
        """When it started, in seconds since the epoch."""
        return time.mktime(time.strptime(self.since, SINCE))


def look_at_claim(folder: Path) -> Claim | None:
    """Who works on a results folder, or did last; None if nobody has."""
    try:
        with _open(folder / CLAIM, create=False) as handle:
            running = not _try_lock(handle, fcntl.LOCK_SH)
            entry = _read_claim(handle)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not entry:
        return None
    log = folder.absolute().parent / entry["log"] if entry.get("log") else None
    return Claim(running, entry["pid"], entry["since"], log)


def held_folders(results: Path) -> list[Path]:
    """The folders below `results` that jobs are working on alone (`exclusive`)."""
    held = []
    for path in results.rglob(LOCK):
        with _open(path, create=False) as handle:
            if not _try_lock(handle, fcntl.LOCK_SH):
                held.append(path.parent)
    return held


def _try_lock(handle: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path, create: bool = True) -> IO[str]:
    """A lock file, opened for reading and, with `create`, for writing.

    A link in its place is not followed, or what it leads to would be written over. Raises UserError if something
    else is there, FileNotFoundError if nothing is and nothing is to be created.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_RDWR | os.O_CREAT if create else os.O_RDONLY)
    try:
        handle = os.fdopen(os.open(path, flags, 0o666), "r+" if create else "r", encoding="utf-8", errors="replace")
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise UserError(_NO_LOCK.format(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
        handle.close()
        raise UserError(_NO_LOCK.format(path))
    return handle


def _read_claim(handle: IO[str]) -> dict[str, Any]:
    """What is written in the claim; empty if its holder has not come to writing yet, or if it is damaged."""
    handle.seek(0)
    try:
        entry = parse_json(handle.read(), CLAIM)
        time.mktime(time.strptime(entry["since"], SINCE))
        valid = isinstance(entry["pid"], int) and isinstance(entry["log"], str | None)
    except (ArtifactError, TypeError, ValueError, OverflowError):
        return {}
    return dict(entry) if valid else {}
