"""A disk on which nothing more can be written: one line, what was there before stays, and no rest of a file is left."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from commands import effopd, tree
from effopd.specs.read import read_spec
from effopd.stages import plot_figure  # noqa: F401 - imported once, before any fork
from effopd.stages.collect_run import collect_run
from effopd.stages.make_tables import make_tables
from effopd.workflow.job_specs import Plan
from small_results import SmallResults


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """No process that is started here can write more than so many bytes to one file (a message, but no artifact)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("made")
    plan = SmallResults(folder / "results").make()
    run = folder / "results/runs/effopd/seed0"
    collect_run(read_spec("collect_run", plan.spec("collect_run", run="effopd", seed=0)), run, run / "metrics.parquet")
    make_tables(read_spec("make_tables", plan.spec("make_tables")), folder / "results", folder / "results/tables")
    return folder, plan


RUN = "results/runs/effopd/seed0"
PROMPTS = "results/data/arithmetic/prompts-base/manifest.json"
COMMANDS = {
    "collect-run": lambda plan: (
        "collect-run", "--spec", plan.spec("collect_run", run="effopd", seed=0), "--run-folder", RUN,
        "--out", f"{RUN}/metrics.parquet",
    ),
    "make-tables": lambda plan: (
        "make-tables", "--spec", plan.spec("make_tables"), "--results", "results", "--out", "results/tables",
    ),
    "make-data": lambda plan: (
        "make-data", "--spec", plan.spec("make_data"), "--out", "results/data/arithmetic/manifest.json",
    ),
    "tokenize-prompts": lambda plan: (
        "tokenize-prompts", "--spec", plan.spec("tokenize_prompts", model="base"), "--out", PROMPTS,
        "--data", "results/data/arithmetic/manifest.json", "--model", "results/models/base/manifest.json",
    ),
    "plot-figure": lambda plan: (
        "plot-figure", "--spec", plan.spec("plot_figure", figure="accuracy_vs_steps"), "--results", "results",
        "--out", "results/figures/accuracy_vs_steps.svg",
    ),
    "write-config": lambda plan: ("write-config", "--spec", plan.spec("write_config"), "--out", "results/config.yaml"),
    "compare": lambda plan: ("compare", "results", "results", "--out", "results/values.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_written_is_said_and_nothing_is_lost(made, tmp_path, name):
    folder, plan = made
    shutil.copytree(folder / "results", tmp_path / "results")
    (tmp_path / "results/.workflow.lock").touch()
    words, before = COMMANDS[name](plan), tree(tmp_path)
    with no_file_beyond(400):
        effopd(*words, folder=tmp_path).refused()
    after = tree(tmp_path)
    assert {path: after.get(path) for path in before} == before
    assert all(after[path].startswith("d") for path in after.keys() - before.keys()), "a rest of a file is left"
    effopd(*words, folder=tmp_path).succeeded()
