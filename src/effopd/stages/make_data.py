"""Data: the splits of a task and its pretraining corpus, as parquet files."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from effopd.artifacts.fingerprints import file_sha256
from effopd.artifacts.manifests import Manifest, atomic_path, read_manifest, write_manifest
from effopd.common.errors import UserError, named_for
from effopd.common.progress import say
from effopd.specs.data import MakeData
from effopd.tasks.base import build_task
from effopd.tasks.splits import without_seen

TRAINED_ON = ("train", "validation")  # the splits that updates and gates may see


def make_data(spec: MakeData, out: Path, files: tuple[Path, ...] = (), training: Path | None = None) -> None:
    """Write the task's splits and, if it has one, its corpus beside the manifest `out`.

    `files` are the local files that the task reads: their contents are part of what the data is. Of a task that is
    only evaluated on, `training` is the data that is trained on: what is in it leaves the test split. Raises UserError
    if nothing is left.
    """
    started = time.time()
    parents = {}
    with named_for(None if training is None else out.parent.name):
        tables, facts = build_task(spec.task).make_tables()
        if training is not None:
            data = read_manifest(training, "data")
            parents["training"] = data.fingerprint
            held = tables["test"]
            tables["test"] = without_seen(held, _trained_on(data))
            if tables["test"].empty:
                raise UserError(
                    f"all {len(held)} test problems are in the data that is trained on ({training.parent}). Evaluate "
                    "on others: change `task.splits.test`."
                )
            facts["overlaps"] = {"test": len(held) - len(tables["test"])}
    written = {f"{name}.parquet": _write(table, out.parent / f"{name}.parquet") for name, table in tables.items()}
    rows = {name: len(table) for name, table in tables.items()}
    inputs = {"files": {str(path): file_sha256(path) for path in files}} if files else {}
    result = {"rows": rows, **facts}
    write_manifest(
        out,
        kind="data",
        spec={**spec.content, **inputs},
        parents=parents,
        files=written,
        result=result,
        started=started,
    )
    for name in ("duplicates", "overlaps", "beyond_limit"):
        if dropped := {split: count for split, count in facts.get(name, {}).items() if count}:
            say(f"left out, {name.replace('_', ' ')}: " + ", ".join(f"{n} of {split}" for split, n in dropped.items()))
    say("done: " + ", ".join(f"{count} {name}" for name, count in rows.items()) + " rows")


def _trained_on(data: Manifest) -> list[pd.DataFrame]:
    """The problems that updates and gates may see and, if there is one, the corpus to pretrain on."""
    tables = [pd.read_parquet(data.file(f"{split}.parquet")) for split in TRAINED_ON]
    if "corpus.parquet" in data.files:
        corpus = pd.read_parquet(data.file("corpus.parquet"), columns=["prompt"])
        tables.append(corpus.rename(columns={"prompt": "problem"}))
    return tables


def _write(table: pd.DataFrame, path: Path) -> Path:
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
    return path
