"""The commands for people: what an experiment takes, and what to do with a results folder.

`effopd.cli.commands` adds them to the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from effopd.common.errors import UserError
from effopd.common.formatting import one_line, printable

PATH = click.Path(path_type=Path)


def _say(lines: Iterable[str]) -> None:
    """Print lines; what names of files and contents of artifacts bring along cannot control the terminal."""
    for line in lines:
        click.echo(printable(line))


def _results() -> Callable[..., Any]:
    return click.option("--results", type=PATH, default=Path("results"), show_default=True, help="The results folder.")


@click.command("export")
@click.option("--run", "run", required=True, help="Name of the run, or of a prediction from one.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the run.")
@click.option("--step", type=int, required=True, help="Step of a kept state, or up to which a prediction saw them.")
@_results()
@click.option("--out", type=PATH, required=True, help="The folder to write.")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True, help="Of the weights."
)
def export(run: str, seed: int, step: int, results: Path, out: Path, dtype: str) -> None:
    """Write a state of a run, extrapolation included, or predicted weights as a Hugging Face folder."""
    from effopd.results.export import export_state

    export_state(results, run, seed, step, out, dtype)
    _say([one_line(f"wrote {out}")])


@click.command("verify")
@_results()
@click.option(
    "--configfile",
    "configfiles",
    type=PATH,
    multiple=True,
    help="Also check that the artifacts are what this configuration would make now; again for each overlay.",
)
def verify(results: Path, configfiles: tuple[Path, ...]) -> None:
    """Re-check a results folder: manifests, file hashes, and the chain of fingerprints.

    Files that `effopd prune` deleted are not missed. With --configfile, what has changed since is found without
    Snakemake's own records.
    """
    from effopd.results.verify import verify as run
    from effopd.workflow.job_specs import Plan

    found = run(results, Plan.of_files(configfiles) if configfiles else None)
    if not found.artifacts:
        raise UserError(f"{results} holds no artifacts. Run the workflow, or name its folder with --results.")
    for problem in found.problems:
        click.echo(one_line(problem), err=True)
    if found.problems:
        raise UserError(f"{len(found.problems)} problems in {found.artifacts} artifacts of {results}.")
    without = f" ({found.pruned} of their files were pruned)" if found.pruned else ""
    _say([f"{found.artifacts} artifacts of {results} are whole, and made from each other{without}."])
    if found.unsealed:
        _say([f"{found.unsealed} of them were written by an older version, without a digest of their own: "
              "edits of what they say of results, costs and times cannot be found."])  # fmt: skip


@click.command("prune")
@_results()
@click.option(
    "--optimizers",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Keep the optimizer moments of so many triggers of each run and seed, the last ones.",
)
@click.option("--apply", is_flag=True, help="Delete it. Without this, only say what would go.")
def prune(results: Path, optimizers: int, apply: bool) -> None:
    """Free what no job of the plan needs any more: early optimizer moments, states between kept ones, leftovers.

    Nothing has to be made again because of it, and raising `training.steps` still works. The weights of all kept
    states stay. Should a change of the configuration need what was deleted, the job says how to have it back.
    """
    from effopd.results.prune import prune as run

    _say(run(results, optimizers, apply))


@click.command("status")
@_results()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def status(results: Path, as_json: bool) -> None:
    """Say what is done, running and left, by model and by run and seed."""
    from effopd.results.status import describe
    from effopd.results.status import status as run

    found = run(results)
    _say([json.dumps(found, indent=2)] if as_json else describe(found))


@click.command("compare")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--out", type=PATH, help="Also write all values to this CSV file: one row per run, seed, step and metric."
)
def compare(a: Path, b: Path, out: Path | None) -> None:
    """Compare two results folders, A and B: configuration, code, metrics, cost and weights."""
    from effopd.results.compare import compare as run

    _say(run(a, b, out))


@click.command("estimate")
@click.option(
    "--configfile",
    "configfiles",
    type=PATH,
    multiple=True,
    default=(Path("config/config.yaml"),),
    show_default=True,
    help="The configuration; again for each overlay.",
)
def estimate(configfiles: tuple[Path, ...]) -> None:
    """Estimate GPU hours and disk of an experiment before it is begun.

    The assumptions are the section `estimate` of the configuration; docs/preflight.md says how it is computed.
    """
    from effopd.workflow.estimates.experiment import estimate as run
    from effopd.workflow.job_specs import Plan

    plan = Plan.of_files(configfiles)
    found = run(plan)
    _say([*found.table(), f"together: {found.line()}", *found.assumptions(plan), *found.notes])


@click.command("samples")
@click.argument("results", type=PATH, default=Path("results"))
@click.option("--run", "runs", multiple=True, help="A run or prediction; again for more. Without this, all of them.")
@click.option("--seed", type=int, help="Seed of the runs.  [default: the first]")
@click.option("--step", "steps", type=int, multiple=True, help="Only after this step; again for more.")
@click.option(
    "--model", "models", multiple=True, help="A model instead of the runs' students and teachers; again for more."
)
@click.option("--problem", type=int, help="Only this problem: its row in the test split.")
@click.option("--task", help="Name of one of `evaluation.tasks`, instead of the task that is trained on.")
@click.option("--full", is_flag=True, help="Print texts whole, prompts too, instead of a line for each completion.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts; all texts are whole.")
def samples(
    results: Path,
    runs: tuple[str, ...],
    seed: int | None,
    steps: tuple[int, ...],
    models: tuple[str, ...],
    problem: int | None,
    task: str | None,
    full: bool,
    as_json: bool,
) -> None:
    """Print sample completions: students, runs over their steps and teachers side by side, with verdicts.

    RESULTS is the results folder. The problems are those of which every evaluation keeps a completion
    (`evaluation.kept_samples`).
    """
    from effopd.results.samples import Wanted, describe
    from effopd.results.samples import samples as run

    found = run(results, Wanted(runs, seed, steps, models, problem, task))
    _say([json.dumps(found, indent=2)] if as_json else describe(found, full))


COMMANDS = (export, verify, prune, status, compare, samples, estimate)
