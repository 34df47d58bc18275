"""Sample completions: what students, runs over their steps and teachers answer to the same few problems."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from effopd.artifacts.manifests import Manifest, read_manifest
from effopd.common.errors import UserError
from effopd.common.formatting import aligned, one_line, printable
from effopd.evaluation.sample_files import read_samples
from effopd.workflow.job_specs import Plan

LINE = 100  # characters of a text on one line


@dataclass(frozen=True)
class Wanted:
    """What to show; what is empty or None leaves the choice open."""

    runs: Sequence[str] = ()  # and predictions
    seed: int | None = None
    steps: Sequence[int] = ()
    models: Sequence[str] = ()  # instead of students and teachers
    problem: int | None = None  # row in the test split
    task: str | None = None  # of `evaluation.tasks`


@dataclass(frozen=True)
class Evaluated:
    """An evaluation that the plan asks for: whose it is, and where."""

    of: str  # the name of a model, run or prediction
    role: str  # student, run, prediction, teacher or model
    step: int | None  # of runs and predictions
    path: Path


def samples(results: Path, wanted: Wanted) -> dict[str, Any]:
    """The samples by problem, as JSON values. Raises UserError if there is nothing of that name, or no samples."""
    plan = Plan.of_results(results)
    seed = plan.seeds[0] if wanted.seed is None else wanted.seed
    _check("seed", [seed], plan.seeds, results)
    tasks = [wanted.task] if wanted.task is not None else []
    _check("task", tasks, plan.other_tasks, results)
    problems: dict[tuple[int, str], dict[str, Any]] = {}
    missing, without = [], []
    for evaluated in _evaluations(results, plan, seed, wanted):
        if not evaluated.path.exists():
            missing.append(_name(evaluated.of, evaluated.step))
            continue
        manifest = read_manifest(evaluated.path, "evaluation")
        kept = read_samples(manifest)
        if kept is None:
            without.append(manifest)
            continue
        for sample in kept:
            values = asdict(sample)
            about = {name: values.pop(name) for name in ("row", "problem", "answer")}
            place = problems.setdefault((sample.row, sample.problem), {**about, "samples": []})
            own = {"of": evaluated.of, "role": evaluated.role, "step": evaluated.step, "verdict": sample.verdict}
            place["samples"].append({**own, **values})
    if not problems:
        raise UserError(_why_none(results, missing, without))
    if wanted.problem is not None:
        _check("problem", [wanted.problem], sorted({row for row, _ in problems}), results)
    return {
        "results": str(results),
        "task": wanted.task or plan.task_name,
        "seed": seed,
        "problems": [problems[p] for p in sorted(problems) if wanted.problem in (None, p[0])],
        "not_evaluated": missing,
        "without_samples": [str(manifest.path) for manifest in without],
    }


def _check(kind: str, names: Collection[object], there: Collection[object], results: Path) -> None:
    """Raise UserError, which names what there is, unless all of the names are there."""
    for name in names:
        if name not in there:
            known = ", ".join(map(str, there)) or "none"
            raise UserError(f"`--{kind}`: {results} has no {kind} {name!r}. There is: {known}.")


def _evaluations(results: Path, plan: Plan, seed: int, wanted: Wanted) -> Iterator[Evaluated]:
    """The evaluations to show, in their order: students, runs, predictions, teachers; models that are named first."""
    folder = results / "evaluation" / (f"tasks/{wanted.task}" if wanted.task else "")
    steps = {run: plan.boundaries(run) for run in plan.runs}
    if wanted.task:  # only last states are asked, and no predictions
        steps = {run: own[-1:] for run, own in steps.items()}
    else:
        steps |= {prediction: plan.prediction_steps(prediction) for prediction in plan.predictions}
    _check("run", wanted.runs, steps, results)
    _check("model", wanted.models, plan.config["models"], results)
    shown = {run: steps[run] for run in wanted.runs or steps}
    _check("step", wanted.steps, sorted({step for own in shown.values() for step in own}), results)
    behind = [plan.roles(plan.predicted_from(run) if run in plan.predictions else run) for run in shown]
    students, teachers = (list(dict.fromkeys(pair[role] for pair in behind)) for role in (0, 1))
    before = dict.fromkeys(wanted.models, "model") or dict.fromkeys(students, "student")
    after = [] if wanted.models else [model for model in teachers if model not in before]
    for model, role in before.items():
        yield Evaluated(model, role, None, folder / f"models/{model}.json")
    for run, own in shown.items():
        role = "prediction" if run in plan.predictions else "run"
        for step in own:
            if not wanted.steps or step in wanted.steps:
                yield Evaluated(run, role, step, folder / f"{run}/seed{seed}/{step}.json")
    for model in after:
        yield Evaluated(model, "teacher", None, folder / f"models/{model}.json")


def _why_none(results: Path, missing: Sequence[str], without: Sequence[Manifest]) -> str:
    if not without:
        return f"nothing of this is evaluated yet in {results}: {', '.join(missing)}. Run the workflow."
    settings = without[0].spec.get("evaluation")
    if isinstance(settings, dict) and settings.get("kept_samples") == 0:
        return (
            f"{without[0].path} keeps no samples: `evaluation.kept_samples` is 0. Raise it and run the workflow again."
        )
    return f"{without[0].path} was made before samples were kept: run the workflow again."


def _name(of: str, step: int | None) -> str:
    return of if step is None else f"{of} step {step}"


def describe(found: dict[str, Any], full: bool) -> list[str]:
    """The samples as lines: of each problem a table, or whole texts, indented so that none passes for a heading."""
    lines = [f"{one_line(found['results'])}: task {found['task']}, seed {found['seed']}"]
    for problem in found["problems"]:
        lines += ["", *(_whole if full else _table)(problem)]
    for title, names in (("not evaluated yet", found["not_evaluated"]), ("without samples", found["without_samples"])):
        if names:
            lines += ["", f"{title}: {', '.join(names)}"]
    return lines


def _table(problem: dict[str, Any]) -> list[str]:
    rows = [
        [
            sample["of"],
            sample["role"],
            "-" if sample["step"] is None else sample["step"],
            sample["verdict"],
            sample["tokens"],
            one_line(sample["completion"], LINE),
        ]
        for sample in problem["samples"]
    ]
    heads = ["name", "is a", "step", "verdict", "tokens", "completion"]
    return [
        f"problem {problem['row']}: {one_line(problem['problem'], LINE)}",
        f"reference answer: {one_line(problem['answer'], LINE)}",
        *aligned([heads, *rows], left=len(heads)),
    ]


def _whole(problem: dict[str, Any]) -> list[str]:
    lines = [f"problem {problem['row']}:", _indented(problem["problem"])]
    lines += ["reference answer:", _indented(problem["answer"])]
    for sample in problem["samples"]:
        said = f"{sample['verdict']} ({one_line(sample['reason'], LINE)})"
        lines += ["", f"{_name(sample['of'], sample['step'])} ({sample['role']}): {said}, {sample['tokens']} tokens"]
        lines += ["  prompt:", _indented(sample["prompt"]), "  completion:", _indented(sample["completion"])]
    return lines


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in printable(text).split("\n"))
