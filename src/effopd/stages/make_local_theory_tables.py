"""The tables of the local theory: what student and teacher decide, and each run's updates against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from effopd.artifacts.manifests import read_manifest
from effopd.common.progress import say
from effopd.evaluation.statistics import MEAN, with_means
from effopd.report.tables import write_csv
from effopd.specs.reports import MakeLocalTheoryTables
from effopd.stages import compare_local_theory, linearize_student


def make_local_theory_tables(spec: MakeLocalTheoryTables, results: Path, out: Path) -> None:
    """Write local_residuals, local_eigenspace, local_path and local_gradient as CSV into `out`.

    Of the last two, rows whose `seed` is "mean" hold means over seeds, with <column>_low and <column>_high.
    """
    shared: dict[str, list[pd.DataFrame]] = {"residuals": [], "eigenspace": []}
    for student, teacher in spec.linearized:
        place = results / f"dynamics/models/{student}/linearized-{teacher}/manifest.json"
        manifest = read_manifest(place, linearize_student.KIND)
        for name, parts in shared.items():
            table = pd.read_parquet(manifest.file(f"{name}.parquet"))
            parts.append(_named(table, student=student, teacher=teacher))
    paths, gradients = [], []
    for run in spec.runs:
        for seed in spec.seeds:
            manifest = read_manifest(
                results / f"dynamics/{run}/seed{seed}/local_theory.json", compare_local_theory.KIND
            )
            walked = pd.read_parquet(manifest.file(compare_local_theory.PATH))
            gradient = pd.read_parquet(manifest.file(compare_local_theory.GRADIENT))
            over_matrices = gradient.groupby(["step", "directions"])[["share", "random_share"]].mean().reset_index()
            paths.append(_named(walked, run=run, seed=seed))
            gradients.append(_named(over_matrices, run=run, seed=seed))
    tables = {name: pd.concat(parts) for name, parts in shared.items()}
    for name, parts, keys in (("path", paths, ["step"]), ("gradient", gradients, ["step", "directions"])):
        together = pd.concat(parts)
        values = [column for column in together.columns if column not in ("run", "seed", *keys)]
        tables[name] = with_means(together, keys, values, spec.confidence)
    for name, table in tables.items():
        write_csv(out / f"local_{name}.csv", table)
    path = tables["path"]
    last = path[path["seed"] == MEAN].groupby("run", sort=False).last()
    say("done: " + ", ".join(f"{run} cosine {row['cosine']:.2f}" for run, row in last.iterrows()))


def _named(table: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """The table with these columns in front."""
    for position, (name, value) in enumerate(columns.items()):
        table.insert(position, name, value)
    return table
