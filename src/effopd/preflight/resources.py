"""Checks of what training will take of this machine: disk and memory, estimated from the models' sizes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from effopd.common.formatting import size_text
from effopd.preflight.findings import Finding, failed, passed, warned

TIGHT = 0.9  # of what is there: beyond it an estimate that is a little too low would end the run


def check_disk(check: str, needed: float, free: float, place: Path) -> Finding:
    """The bytes that the runs will still write fit the `free` ones at the results folder."""
    measured = f"{size_text(needed)} to write (estimate), {size_text(free)} free at {place}"
    if needed > free:
        return failed(
            check,
            measured,
            "The disk would be full before the runs are done.",
            "Make room, shorten the runs, or run `effopd prune --apply` between them.",
        )
    if needed > TIGHT * free:
        return warned(check, measured, "Little is left for an estimate that is too low.", "Make room.")
    return passed(check, measured)


def check_memory(check: str, needed: float, available: float, kind: str) -> Finding:
    """The bytes that an update takes fit the memory of its device (`kind` says which)."""
    measured = f"{size_text(needed)} for an update (estimate), {size_text(available)} of {kind}"
    if needed > available:
        return failed(
            check,
            measured,
            "The first update would run out of memory.",
            "Lower `training.batch_size`, use more `training.num_processes`, or run in stages (`execution.mode`).",
        )
    if needed > TIGHT * available:
        return warned(check, measured, "Little is left for what is not counted.", "Lower `training.batch_size`.")
    return passed(check, measured)


def free_disk(folder: Path) -> int:
    """Bytes that this user may still write where `folder` is or will be."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def available_memory(device: torch.device) -> tuple[int, str]:
    """The bytes that a job may use on its device, and what they are called."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, "GPU memory"
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found), "memory"
