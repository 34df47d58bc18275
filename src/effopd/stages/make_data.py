"""Data: the splits of the task and its pretraining corpus, as parquet files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd

from effopd.runtime.artifacts import atomic_path, write_manifest
from effopd.runtime.progress import say
from effopd.tasks.base import build_task


def make_data(spec: dict[str, Any], out: Path) -> None:
    """Write train, validation, test and corpus beside the manifest `out`."""
    started = time.time()
    task = build_task(spec["task"])
    tables = {f"{split}.parquet": task.make_split(split) for split in spec["task"]["splits"]}
    tables["corpus.parquet"] = task.make_corpus()
    files = {name: _write(table, out.parent / name) for name, table in tables.items()}
    rows = {name.removesuffix(".parquet"): len(table) for name, table in tables.items()}
    write_manifest(out, kind="data", spec=spec, parents={}, files=files, result={"rows": rows}, started=started)
    say("done: " + ", ".join(f"{count} {name}" for name, count in rows.items()) + " rows")


def _write(table: pd.DataFrame, path: Path) -> Path:
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
    return path
