"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from effopd.runtime.errors import UserError
from effopd.runtime.progress import say


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Work on a folder alone. A job that outlived its killed workflow is waited for; what it wrote is then reused."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another job that is still writing {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def claim_results(folder: Path) -> IO[str]:
    """Claim a results folder for one workflow, for as long as the returned file is open.

    Raises UserError, naming the holder, where another workflow has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / ".workflow.lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = json.loads(handle.read() or "{}")
        raise UserError(
            f"another workflow (process {holder.get('pid')}, since {holder.get('since')}) is working on {folder}. "
            "Wait for it or stop it, then run the command again."
        ) from None
    handle.truncate(0)
    handle.write(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
    handle.flush()
    return handle
