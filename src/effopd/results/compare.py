"""Two results folders side by side: configuration, code, metrics, cost and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from effopd.artifacts.cost import SPENT
from effopd.artifacts.manifests import Manifest
from effopd.common.formatting import aligned, shortened
from effopd.evaluation.statistics import mean_interval
from effopd.report.tables import write_csv
from effopd.results.expected_artifacts import Place, manifest_at
from effopd.workflow.job_specs import Plan

KEY = ["run", "seed", "step"]
OUTCOMES = ["accuracy", "reverse_kl"]
METRICS = [*OUTCOMES, *SPENT]
VALUE_WIDTH = 32
ABSENT = "(absent)"


class Side:
    """One of the two folders: its plan, and the manifests of what the plan asks for, None if there is none.

    Raises ConfigError if the folder is no results folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan = folder, Plan.of_results(folder)
        models = self.plan.config["models"]
        self.models = {model: manifest_at(folder / f"models/{model}/manifest.json") for model in models}
        self.starts = {model: manifest_at(folder / f"evaluation/models/{model}.json") for model in models}
        self.states: dict[Place, Manifest | None] = {}
        self.decisions: dict[Place, Manifest | None] = {}
        self.predictions: dict[Place, Manifest | None] = {}
        self.evaluations: dict[Place, Manifest | None] = {}
        for run, seed, step in self.plan.points():
            place, own = (run, seed, step), folder / f"runs/{run}/seed{seed}"
            self.states[place] = manifest_at(own / f"state/{step}/state.json")
            if step in self.plan.triggers(run):
                self.decisions[place] = manifest_at(own / f"extrapolation/{step}/decision.json")
        for name, seed, step in self.plan.predicted_points():
            own = folder / f"predictions/{name}/seed{seed}/{step}"
            self.predictions[name, seed, step] = manifest_at(own / "prediction.json")
        for name, seed, step in (*self.states, *self.predictions):
            self.evaluations[name, seed, step] = manifest_at(folder / f"evaluation/{name}/seed{seed}/{step}.json")
        self.task_evaluations: dict[tuple[str, str | Place], Manifest | None] = {}  # by model, or last state
        for task in self.plan.other_tasks:
            own = folder / f"evaluation/tasks/{task}"
            for model in models:
                self.task_evaluations[task, model] = manifest_at(own / f"models/{model}.json")
            for run, seed, step in self.plan.last_points():
                self.task_evaluations[task, (run, seed, step)] = manifest_at(own / f"{run}/seed{seed}/{step}.json")

    def by_kind(self) -> dict[str, list[Manifest | None]]:
        return {
            "models": [*self.models.values()],
            "evaluations of models": [*self.starts.values()],
            "states": [*self.states.values()],
            "decisions": [*self.decisions.values()],
            "predictions": [*self.predictions.values()],
            "evaluations": [*self.evaluations.values()],
            "evaluations on other tasks": [*self.task_evaluations.values()],
        }

    def points(self) -> pd.DataFrame:
        """A row for each evaluated point of a run and seed, the student at step 0 included, and of a prediction.

        Columns: run, seed, step, accuracy, reverse_kl, and what getting there cost with its gates: generated_tokens,
        scored_tokens, trained_tokens, seconds (NaN if a manifest that would say so is missing). A prediction costs
        what its run did up to that step, and its own gate.
        """
        rows = []
        for run in self.plan.runs:
            start = self.starts[self.plan.runs[run]["training"]["student"]]
            for seed in self.plan.seeds:
                for step in (0, *self.plan.boundaries(run)):
                    place = (run, seed, step)
                    rows += _point(place, self.evaluations[place] if step else start, self._cost(place))
        for name, seed, step in self.predictions:
            place, behind = (name, seed, step), (self.plan.predicted_from(name), seed, step)
            own = {column: _spent(self.predictions[place], column) for column in SPENT}
            rows += _point(place, self.evaluations[place], _added(self._cost(behind), own))
        return pd.DataFrame(rows, columns=[*KEY, *METRICS]).astype(dict.fromkeys(OUTCOMES, float))

    def _cost(self, place: Place) -> dict[str, float]:
        """What a run and seed took up to a step."""
        run, seed, last = place
        cost = dict.fromkeys(SPENT, 0.0)
        for step in self.plan.boundaries(run):
            for held in (self.states, self.decisions):
                if step <= last and (run, seed, step) in held:
                    cost = _added(cost, {column: _spent(held[run, seed, step], column) for column in SPENT})
        return cost

    def weights_at(self, place: Place) -> list[str] | None:
        """The sha256 of a state's weights and what was accepted at it, or of predicted ones; None: there are none."""
        found = self.states.get(place) or self.predictions.get(place)
        if found is None:
            return None
        files = [held.files for held in (found, self.decisions.get(place)) if held is not None]
        return [of["weights.safetensors"]["sha256"] for of in files if "weights.safetensors" in of]


def _spent(manifest: Manifest | None, column: str) -> float:
    return math.nan if manifest is None else sum(float(row[column]) for row in manifest.recorded["cost"])


def _added(cost: dict[str, float], own: dict[str, float]) -> dict[str, float]:
    return {column: spent + own[column] for column, spent in cost.items()}


def _point(place: Place, measured: Manifest | None, cost: dict[str, float]) -> list[dict[str, Any]]:
    """The row of a point; none if it is not evaluated."""
    if measured is None:
        return []
    outcome = {name: measured.result[name] for name in OUTCOMES}
    return [dict(zip(KEY, place, strict=True)) | outcome | cost]


def compare(a: Path, b: Path, out: Path | None = None) -> list[str]:
    """What differs between two results folders, as lines. Raises ConfigError if one is no results folder.

    What is unfinished is said, and what both have is compared. Differences are B less A, paired by seed, with the
    interval over seeds that A's `evaluation.confidence` asks for. `out` is a CSV file for the values: run, seed, step,
    metric, a, b, difference.
    """
    sides = Side(a), Side(b)
    lines = [f"{name}: {side.folder}{_missing(side)}" for name, side in zip("AB", sides, strict=True)]
    lines += ["", *_configuration(*sides), "", *_code(*sides), "", *_models(*sides)]
    both = sides[0].points().merge(sides[1].points(), on=KEY, suffixes=("_a", "_b"))
    confidence = sides[0].plan.config["evaluation"]["confidence"]
    for run in sides[0].plan.compared:
        if run in sides[1].plan.compared:
            lines += ["", *_run(run, both[both["run"] == run], *sides, confidence)]
    if out is not None:
        write_csv(out, _long(both), digits=None)
        lines += ["", f"wrote {out}"]
    return lines


def _missing(side: Side) -> str:
    counts = {kind: sum(manifest is None for manifest in held) for kind, held in side.by_kind().items()}
    missing = ", ".join(f"{count} of its {kind}" for kind, count in counts.items() if count)
    return f" (unfinished: it lacks {missing})" if missing else ""


def _configuration(a: Side, b: Side) -> Iterator[str]:
    """The keys whose values differ; of runs and predictions that only one has, the names alone."""
    only = [sorted(one.plan.compared.keys() - other.plan.compared.keys()) for one, other in ((a, b), (b, a))]
    configs = []
    for side, own in zip((a, b), only, strict=True):
        config = side.plan.resolved_config()
        for section in ("runs", "predictions"):
            config[section] = {name: value for name, value in config[section].items() if name not in own}
        configs.append(dict(_flat("", config)))
    keys = dict.fromkeys([*configs[0], *configs[1]])
    rows = [(key, *(_shown(config.get(key, ABSENT)) for config in configs)) for key in keys
            if configs[0].get(key, ABSENT) != configs[1].get(key, ABSENT)]  # fmt: skip
    if not rows and not any(only):
        yield "configuration: the same"
        return
    yield from aligned([("configuration", "A", "B"), *rows], left=3)
    for name, runs_of_one in zip("AB", only, strict=True):
        if runs_of_one:
            yield f"runs only in {name}: {', '.join(runs_of_one)}"


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a nested mapping by their dotted keys; an empty mapping has none."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), child)
    else:
        yield prefix, value


def _shown(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value), VALUE_WIDTH)


def _code(a: Side, b: Side) -> Iterator[str]:
    """Differences in the code that made the artifacts, in package versions, and in the machine."""
    facts = [_facts(side) for side in (a, b)]
    rows = []
    for key in sorted(facts[0].keys() | facts[1].keys()):
        values = [sorted(of.get(key, set())) for of in facts]
        if values[0] != values[1] and all(values):
            rows.append((key, *(shortened(", ".join(value), VALUE_WIDTH) for value in values)))
    if rows:
        yield from aligned([("code and versions", "A", "B"), *rows], left=3)
    else:
        yield "code and versions: the same"


def _facts(side: Side) -> dict[str, set[str]]:
    """What the manifests say of code, packages and machine: the values by what they are of."""
    facts: dict[str, set[str]] = {}
    for kind, held in side.by_kind().items():
        for manifest in held:
            if manifest is not None:
                recorded = manifest.recorded
                named = {f"code of {kind}": manifest.spec["code"][:12], "platform": recorded["host"]["platform"]}
                for key, value in (named | recorded["versions"]).items():
                    facts.setdefault(key, set()).add(str(value))
    return facts


def _models(a: Side, b: Side) -> Iterator[str]:
    for model in a.models:
        one, other = a.models[model], b.models.get(model)
        if one is not None and other is not None:
            weights = [{n: f["sha256"] for n, f in m.files.items() if n.endswith(".safetensors")} for m in (one, other)]
            yield f"model {model}: {'bitwise the same weights' if weights[0] == weights[1] else 'other weights'}"


def _run(run: str, both: pd.DataFrame, a: Side, b: Side, confidence: float) -> Iterator[str]:
    """Outcomes of a run or prediction at each point that both have, means over the seeds in both; cost and weights."""
    seeds = sorted(both.loc[both["step"] > 0, "seed"].unique())
    if not seeds:
        yield f"{run}: no seed and step of it is evaluated in both"
        return
    both = both[both["seed"].isin(seeds)]
    last = int(both.groupby("seed")["step"].max().min())
    yield f"{run} ({_named(seeds)}; last common step {last})"
    yield from _outcomes(both, seeds, confidence)
    yield from _on_other_tasks(run, a, b, confidence)
    end = both[both["step"] == last]
    for column, digits in (("generated_tokens", ",.0f"), ("seconds", ",.1f")):
        means = [float(end[f"{column}_{side}"].mean(skipna=False)) for side in "ab"]
        shown = ["unknown" if math.isnan(mean) else f"{mean:{digits}}" for mean in means]
        ratio = f" (ratio {means[1] / means[0]:.2f})" if means[0] and not math.isnan(sum(means)) else ""
        yield f"{column.replace('_', ' ')} up to step {last}: {shown[0]} in A, {shown[1]} in B{ratio}"
    places = [place for place in (*a.states, *a.predictions) if place[0] == run]
    pairs = [(a.weights_at(place), b.weights_at(place)) for place in places]
    pairs = [(one, other) for one, other in pairs if one and other]
    same = sum(one == other for one, other in pairs)
    what = "kept states" if run in a.plan.runs else "predictions"
    yield f"weights: bitwise the same at {same} of {len(pairs)} {what}"


def _outcomes(both: pd.DataFrame, seeds: Sequence[int], confidence: float) -> Iterator[str]:
    """Accuracy and reverse KL step by step, or one line if they are the same throughout."""
    whole = (both.groupby("step")["seed"].nunique() == len(seeds)).all()
    if whole and all(both[f"{metric}_a"].equals(both[f"{metric}_b"]) for metric in OUTCOMES):
        yield f"accuracy and reverse KL: the same at steps {', '.join(map(str, sorted(both['step'].unique())))}"
        return
    rows: list[Sequence[object]] = [("step", "accuracy A", "B", "B - A", "reverse KL A", "B", "B - A")]
    for step, group in both.groupby("step"):
        accuracy = [100 * group[f"accuracy_{side}"] for side in "ab"]
        kl = [group[f"reverse_kl_{side}"] for side in "ab"]
        own = sorted(group["seed"])
        rows.append(
            [
                step if own == seeds else f"{step} ({_named(own)})",
                *(f"{of.mean(skipna=False):.1f} %" for of in accuracy),
                _difference(accuracy, ".1f", confidence),
                *(f"{of.mean(skipna=False):z.4f}" for of in kl),
                _difference(kl, ".4f", confidence),
            ]
        )
    yield from aligned(rows)


def _on_other_tasks(run: str, a: Side, b: Side, confidence: float) -> Iterator[str]:
    """Accuracy of a run's last states on each other task, means over the seeds that both have evaluated."""
    places = [place for place in a.plan.last_points() if place[0] == run]
    for task in a.plan.other_tasks:
        pairs = [[side.task_evaluations.get((task, place)) for side in (a, b)] for place in places]
        found = [[100 * held.result["accuracy"] for held in pair if held is not None] for pair in pairs]
        both = pd.DataFrame([pair for pair in found if len(pair) == 2], columns=["a", "b"])
        if not both.empty:
            means, difference = both.mean(), _difference([both["a"], both["b"]], ".1f", confidence)
            yield f"accuracy on {task}: {means['a']:.1f} % in A, {means['b']:.1f} % in B (B - A: {difference})"


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _difference(pair: Sequence[pd.Series], digits: str, confidence: float) -> str:
    """The mean of paired differences, B less A, with its interval over seeds if there are several."""
    differences = (pair[1] - pair[0]).tolist()
    if not any(differences):
        return "0"
    mean, low, high = mean_interval(differences, confidence)
    bounds = "" if math.isnan(low) else f" ({low:+{digits}} to {high:+{digits}})"
    return f"{mean:+{digits}}{bounds}"


def _long(both: pd.DataFrame) -> pd.DataFrame:
    """One row per run, seed, step and metric: a, b and their difference."""
    parts = []
    for metric in METRICS:
        part = both[KEY].assign(metric=metric, a=both[f"{metric}_a"], b=both[f"{metric}_b"])
        parts.append(part.assign(difference=part["b"] - part["a"]))
    return pd.concat(parts).sort_values([*KEY, "metric"], kind="stable")
