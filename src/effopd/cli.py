"""The command line: `effopd <verb>`. Every rule of the workflow is one of these verbs.

Verbs import what they need when they run, so that help is instant.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from effopd import __version__
from effopd.runtime.errors import UserError, describe_os_error

PATH = click.Path(path_type=Path)


class _Spec(click.ParamType):
    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            self.fail(f"not JSON: {error}", param, ctx)


def _path(name: str, text: str, required: bool = True) -> Callable[..., Any]:
    return click.option(f"--{name}", type=PATH, required=required, help=text)


def _stage(name: str, *options: Callable[..., Any], computes: bool = False) -> Callable[..., Any]:
    """A verb that runs a stage: --spec and --out, its own options and, if it computes, the device."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        common = [
            click.option(
                "--spec", type=_Spec(), required=True, help="Config slice and code digest, as canonical JSON."
            ),
            _path("out", "Where to write the result; for a manifest, its files lie beside it."),
        ]
        if computes:
            common += [
                click.option("--device", default="auto", envvar="EFFOPD_DEVICE", show_default=True,
                             type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute."),
                click.option("--threads", default=1, envvar="EFFOPD_THREADS", show_default=True,
                             type=click.IntRange(1), help="CPU threads."),
            ]  # fmt: skip
        for option in reversed([*options, *common]):
            function = option(function)
        return main.command(name)(function)

    return decorate


def _device(device: str, threads: int) -> Any:
    from effopd.runtime.device import prepare_device

    return prepare_device(device, threads)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="effopd")
def main() -> None:
    """EffOPD: accelerate and understand on-policy distillation of language models.

    `snakemake --cores all` runs the whole experiment; these verbs are its parts, which also work by hand.
    """


_STUDENT = _path("student", "Manifest of the student's model.")
_TEACHER = _path("teacher", "Manifest of the teacher's model.")
_DATA = _path("data", "Manifest of the data.")
_STATE = _path("state", "Manifest of the state (or, at step 0, of the model).")
_LEDGER = _path("ledger", "Ledger of the trigger at that state, if there was one.", required=False)
_ANCHOR = _path("anchor", "Manifest of the state (or model) at the previous trigger.")
_ANCHOR_LEDGER = _path("anchor-ledger", "Ledger of the previous trigger, if there was one.", required=False)


@_stage("make-data")
def make_data(spec: dict[str, Any], out: Path) -> None:
    """Make the task's splits and pretraining corpus."""
    from effopd.stages.make_data import make_data as run

    run(spec, out)


@_stage("pretrain-model", _DATA, computes=True)
def pretrain_model(spec: dict[str, Any], out: Path, data: Path, device: str, threads: int) -> None:
    """Train a base model from scratch."""
    from effopd.stages.pretrain_model import pretrain_model as run

    run(spec, data, out, _device(device, threads))


@_stage("train-rl", _DATA, _path("init", "Manifest of the model to start from."), computes=True)
def train_rl(spec: dict[str, Any], out: Path, data: Path, init: Path, device: str, threads: int) -> None:
    """Train a model by reinforcement learning (GRPO)."""
    from effopd.stages.train_rl import train_rl as run

    run(spec, data, init, out, _device(device, threads))


@_stage(
    "train-segment",
    _STUDENT,
    _TEACHER,
    _DATA,
    _STATE,
    _LEDGER,
    _path("run-folder", "Where the steps' rollouts and scores are kept."),
    computes=True,
)
def train_segment(device: str, threads: int, **arguments: Any) -> None:
    """Distil on-policy from one kept state to the next."""
    from effopd.stages.train_segment import train_segment as run

    run(device=_device(device, threads), **arguments)


@_stage("evaluate-candidates", _STUDENT, _TEACHER, _DATA, _STATE, _ANCHOR, _ANCHOR_LEDGER, computes=True)
def evaluate_candidates(device: str, threads: int, **arguments: Any) -> None:
    """Score extrapolated candidates with the gate."""
    from effopd.stages.evaluate_candidates import evaluate_candidates as run

    run(device=_device(device, threads), **arguments)


@_stage("select-candidate", _STATE, _ANCHOR, _ANCHOR_LEDGER, _path("candidates", "Manifest of the gate's values."))
def select_candidate(**arguments: Any) -> None:
    """Decide how far to extrapolate, and write the ledger."""
    from effopd.stages.select_candidate import select_candidate as run

    run(**arguments)


@_stage("evaluate", _STUDENT, _TEACHER, _DATA, _STATE, _LEDGER, computes=True)
def evaluate(device: str, threads: int, **arguments: Any) -> None:
    """Evaluate a model or state on the held-out problems."""
    from effopd.stages.evaluate import evaluate as run

    run(device=_device(device, threads), **arguments)


_RESULTS = _path("results", "The results folder.")


@_stage("collect-run", _path("run-folder", "The run's folder for one seed."))
def collect_run(spec: dict[str, Any], out: Path, run_folder: Path) -> None:
    """Gather a run's metrics (a row a step) and cost ledger (a row a stage call)."""
    from effopd.stages.collect_run import collect_run as run

    run(spec, run_folder, out)


@_stage("make-tables", _RESULTS)
def make_tables(spec: dict[str, Any], out: Path, results: Path) -> None:
    """Make the tables of the comparison."""
    from effopd.stages.make_tables import make_tables as run

    run(spec, results, out)


@_stage("plot-figure", _path("tables", "The folder of tables."))
def plot_figure(spec: dict[str, Any], out: Path, tables: Path) -> None:
    """Draw one figure, as SVG at --out and as PNG beside it."""
    from effopd.stages.plot_figure import plot_figure as run

    run(spec, tables, out)


@_stage("write-config")
def write_config(spec: dict[str, Any], out: Path) -> None:
    """Write the configuration with all defaults."""
    from effopd.stages.write_config import write_config as run

    run(spec, out)


@_stage("write-report", _RESULTS)
def write_report(spec: dict[str, Any], out: Path, results: Path) -> None:
    """Write the HTML report."""
    from effopd.stages.write_report import write_report as run

    run(spec, results, out)


@main.command("export")
@click.option("--run", "run", required=True, help="Name of the run.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the run.")
@click.option("--step", type=int, required=True, help="Step of a kept state.")
@click.option("--results", type=PATH, default=Path("results"), show_default=True, help="The results folder.")
@_path("out", "The folder to write.")
def export(run: str, seed: int, step: int, results: Path, out: Path) -> None:
    """Write a state of a run as a Hugging Face folder, extrapolation included."""
    from effopd.runtime.export import export_state

    export_state(results, run, seed, step, out)
    click.echo(f"wrote {out}")


@main.command("verify")
@click.option("--results", type=PATH, default=Path("results"), show_default=True, help="The results folder.")
def verify(results: Path) -> None:
    """Re-check a results folder: manifests, file hashes, and the chain of fingerprints."""
    from effopd.runtime.verify import verify as run

    count, problems = run(results)
    if not count:
        raise UserError(f"{results} holds no artifacts. Run the workflow, or name its folder with --results.")
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise UserError(f"{len(problems)} problems in {count} artifacts of {results}.")
    click.echo(f"{count} artifacts of {results} are whole, and made from each other.")


@main.command("describe-config")
def describe_config() -> None:
    """Print the configuration's parameters as a Markdown table."""
    from effopd.config import parameter_table

    click.echo(parameter_table(), nl=False)


def run_verb(arguments: list[str]) -> int:
    """Run a verb. Its exit status: 0; 2 after one line about what a person can mend; 1 after a traceback."""
    try:
        status = main.main(args=arguments, prog_name="effopd", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        line = describe_os_error(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    except Exception as error:
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def exit_now(status: int) -> None:
    """Leave without tearing down torch's threads and process groups, which takes a while and can hang."""
    os._exit(status)
