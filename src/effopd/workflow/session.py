"""One run of the workflow: the claim on its results folder, and the warm server that its jobs start from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from effopd.artifacts.locks import claim_results
from effopd.config import runtime_options as options
from effopd.workflow import fork_server as warm

_claim: IO[str] | None = None
_server: subprocess.Popen[bytes] | None = None


def announce(runtime: dict[str, Any]) -> None:
    """Tell jobs how to run, through the environment: nothing of it is part of a fingerprint.

    The commands of this Python's environment come first on the path, whether or not it is activated.
    """
    here = str(Path(sys.executable).parent)
    if not os.environ["PATH"].startswith(here + os.pathsep):
        os.environ["PATH"] = here + os.pathsep + os.environ["PATH"]
    os.environ["EFFOPD_DEVICE"] = runtime["device"]
    os.environ["EFFOPD_THREADS"] = str(runtime["threads"])
    options.announce(runtime)
    for name, value in warm.MALLOC.items():
        os.environ.setdefault(name, value)


def begin(results: Path, runtime: dict[str, Any], local: bool, log: str | None = None) -> None:
    """Claim the results folder, and start the warm server unless it is off, a GPU is used or a cluster runs the jobs.

    `log` is the path of Snakemake's own log of this run, which `effopd status` reads. Raises UserError if another
    workflow has claimed the folder.
    """
    global _claim, _server
    _claim = claim_results(results, os.path.relpath(log, results.absolute().parent) if log else None)
    os.environ.pop("EFFOPD_WARM", None)
    if not local:  # a job on this machine would find the server and leave its allocation
        return
    if runtime["warm"] == "off" or runtime["device"] == "cuda" or not warm.supported():
        return
    if runtime["warm"] == "auto" and runtime["device"] == "auto" and shutil.which("nvidia-smi"):
        return
    _server = warm.start_server()


def end() -> None:
    """Stop the warm server and give the folder back."""
    global _claim, _server
    if _server is not None:
        _server.kill()
        _server.wait()
        _server = None
    if _claim is not None:
        _claim.close()
        _claim = None
