"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from effopd.runtime.errors import UserError
from effopd.runtime.progress import say

LOCK, CLAIM = ".lock", ".workflow.lock"
LOOK_SECONDS = 0.2
SINCE = "%Y-%m-%d %H:%M:%S"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Work on a folder alone. A job that outlived its killed workflow is waited for; what it wrote is then reused."""
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+") as handle:
        if not _try_lock(handle):
            say(f"waiting for another job that is still writing {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def claim_results(folder: Path, log: str | None = None) -> IO[str]:
    """Claim a results folder for one workflow, for as long as the returned file is open.

    `log` is where the workflow writes what it does, relative to the folder that `folder` is in; where it is None, that
    of the last workflow stays on record. Raises UserError, naming the holder, where another workflow has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / CLAIM).open("a+")
    if not _try_lock(handle):
        time.sleep(LOOK_SECONDS)  # perhaps somebody only looked whether it is claimed
        if not _try_lock(handle):
            holder = _read_claim(folder)
            raise UserError(
                f"another workflow (process {holder.get('pid')}, since {holder.get('since')}) is working on {folder}. "
                "Wait for it or stop it, then run the command again."
            )
    entry = {"pid": os.getpid(), "since": time.strftime(SINCE), "log": log or _read_claim(folder).get("log")}
    handle.truncate(0)
    handle.write(json.dumps(entry))
    handle.flush()
    return handle


@dataclass(frozen=True)
class Claim:
    """The workflow that works on a results folder or, where none does, the last one."""

    running: bool
    pid: int
    since: str  # local time, as SINCE
    log: Path | None

    @property
    def started(self) -> float:
        """When it started, in seconds since the epoch."""
        return time.mktime(time.strptime(self.since, SINCE))


def look_at_claim(folder: Path) -> Claim | None:
    """Who works on a results folder, or did last; None where nobody has."""
    try:
        with (folder / CLAIM).open() as handle:
            running = not _try_lock(handle, fcntl.LOCK_SH)
    except FileNotFoundError:
        return None
    entry = _read_claim(folder)
    if not entry:
        return None
    log = folder.absolute().parent / entry["log"] if entry.get("log") else None
    return Claim(running, entry["pid"], entry["since"], log)


def held_folders(results: Path) -> list[Path]:
    """The folders below `results` that jobs are working on alone (`exclusive`)."""
    held = []
    for path in results.rglob(LOCK):
        with path.open() as handle:
            if not _try_lock(handle, fcntl.LOCK_SH):
                held.append(path.parent)
    return held


def _try_lock(handle: IO[str], kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_claim(folder: Path) -> dict[str, Any]:
    """What is written in the claim; empty where its holder has not come to writing yet."""
    text = (folder / CLAIM).read_text(encoding="utf-8")
    return dict(json.loads(text)) if text else {}
