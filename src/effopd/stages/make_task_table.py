"""Tables by task and source of the problems: what models, states and predictions answer right of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from effopd.artifacts.manifests import Manifest, read_manifest
from effopd.common.progress import say
from effopd.evaluation.statistics import interval_columns, with_means
from effopd.report.tables import write_csv
from effopd.specs.reports import MakeTaskTable

KEYS = ["task", "source", "step"]
VALUES = ["accuracy", "completion_length", "finished"]
ALL = "all"  # the `source` of rows on all problems of a task: no source of several has that name (config_checks)


def make_task_table(spec: MakeTaskTable, results: Path, out: Path) -> None:
    """Write the CSV file `out`: a row for each task, source of its problems, and model or run, seed and step.

    spec.folder is where the evaluations on `{task}` are; spec.runs names runs and predictions with their steps.
    `run` is `models/<name>` for a model, with `seed` and `step` 0. After each run's rows come those of its means over
    seeds (`seed` is `mean`) with Student-t bounds. `problems` and `completions` count what a row of one seed is of.
    """
    rows = [row for task in spec.tasks for row in _rows(spec, results, task)]
    table = pd.DataFrame(rows)
    counts = table.drop_duplicates(["run", *KEYS]).set_index(["run", *KEYS])[["problems", "completions"]]
    table = with_means(table, KEYS, VALUES, spec.confidence).join(counts, on=["run", *KEYS])
    table = table.reindex(columns=[*interval_columns(KEYS, VALUES), *counts])
    write_csv(out, table)
    say(f"done: {', '.join(spec.tasks)}: {len(table)} rows")


def _rows(spec: MakeTaskTable, results: Path, task: str) -> Iterator[dict[str, Any]]:
    """The rows of a task, before means are taken."""
    folder = results / spec.folder.format(task=task)
    sources = {model: _sources(results / f"data/{task}", model) for model in spec.models}
    several = pd.concat(sources.values()).nunique() > 1
    for model in spec.models:
        evaluated = read_manifest(folder / f"models/{model}.json", "evaluation")
        for outcome in _outcomes(evaluated, sources[model], several):
            yield {"run": f"models/{model}", "seed": 0, "task": task, "step": 0, **outcome}
    for about in spec.runs:
        for seed, step in itertools.product(spec.seeds, about.steps):
            evaluated = read_manifest(folder / f"{about.run}/seed{seed}/{step}.json", "evaluation")
            for outcome in _outcomes(evaluated, sources[about.student], several):
                yield {"run": about.run, "seed": seed, "task": task, "step": step, **outcome}


def _sources(data: Path, model: str) -> pd.Series:
    """The source of each problem that a model is asked; one and the same for all where the task names none."""
    table = read_manifest(data / "manifest.json", "data").file("test.parquet")
    prompts = read_manifest(data / f"prompts-{model}/manifest.json", "prompts")
    rows = pd.read_parquet(prompts.file("test.parquet"), columns=["row"])["row"]
    if "source" not in pq.read_schema(table).names:
        return pd.Series(ALL, index=rows.index)
    named = pd.read_parquet(table, columns=["source"])["source"]  # alone: a program's tests are large
    return named.loc[rows].reset_index(drop=True)


def _outcomes(evaluated: Manifest, sources: pd.Series, several: bool) -> Iterator[dict[str, Any]]:
    """What an evaluation found on all problems and, if there are several sources, on those of each."""
    items = pd.read_parquet(evaluated.file(f"{evaluated.path.stem}.items.parquet"))
    yield {"source": ALL, **_outcome(items)}
    if several:
        for name, own in items.groupby(items["index"].map(sources), sort=False):
            yield {"source": name, **_outcome(own)}


def _outcome(items: pd.DataFrame) -> dict[str, Any]:
    return {
        "accuracy": items["reward"].mean(),
        "completion_length": items["tokens"].mean(),
        "finished": items["finished"].mean(),
        "problems": items["index"].nunique(),
        "completions": len(items),
    }
