"""Data: the splits of the task and its pretraining corpus, as parquet files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd

from effopd.runtime.artifacts import atomic_path, write_manifest
from effopd.runtime.fingerprints import file_sha256
from effopd.runtime.progress import say
from effopd.tasks.base import build_task


def make_data(spec: dict[str, Any], out: Path, files: tuple[Path, ...] = ()) -> None:
    """Write train, validation, test and, where the task has one, the corpus beside the manifest `out`.

    `files` are the local files that the task reads: their contents are part of what the data is.
    """
    started = time.time()
    task = build_task(spec["task"])
    tables, facts = task.make_tables()
    written = {f"{name}.parquet": _write(table, out.parent / f"{name}.parquet") for name, table in tables.items()}
    rows = {name: len(table) for name, table in tables.items()}
    inputs = {"files": {str(path): file_sha256(path) for path in files}} if files else {}
    result = {"rows": rows, **facts}
    write_manifest(out, kind="data", spec={**spec, **inputs}, parents={}, files=written, result=result, started=started)
    for name in ("duplicates", "overlaps", "beyond_limit"):
        if dropped := {split: count for split, count in facts.get(name, {}).items() if count}:
            say(f"left out, {name.replace('_', ' ')}: " + ", ".join(f"{n} of {split}" for split, n in dropped.items()))
    say("done: " + ", ".join(f"{count} {name}" for name, count in rows.items()) + " rows")


def _write(table: pd.DataFrame, path: Path) -> Path:
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
    return path
