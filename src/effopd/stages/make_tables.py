"""The tables of the comparison, from evaluations, decisions and cost ledgers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from effopd.artifacts.cost import SPENT
from effopd.artifacts.manifests import Manifest, read_manifest
from effopd.common.progress import say
from effopd.evaluation.comparison import REVERSE_KL, Outcome, State, comparison, curves, speedup
from effopd.evaluation.flops import ledger_flops
from effopd.evaluation.statistics import mean_interval
from effopd.report.tables import read_parquet, write_csv
from effopd.specs.reports import MakeTables

COSTS = (*SPENT, "flops")


def make_tables(spec: MakeTables, results: Path, out: Path) -> None:
    """Write models, evaluation, extrapolation, speedup, comparison and summary as CSV files into the folder `out`."""
    models = _models(spec, results)
    evaluation, outcomes = _evaluation(spec, results, models)
    found, pairs = curves(evaluation, outcomes), [(run, reference) for run, reference in spec.pairs]
    groups = {about.run: about.group for about in spec.runs}
    groups |= {about.prediction: about.group for about in spec.predictions}
    tables = {
        "models": models,
        "evaluation": evaluation,
        "extrapolation": _extrapolation(spec, results),
        "speedup": speedup(found, spec.seeds, pairs),
        "comparison": comparison(found, curves(evaluation, outcomes, REVERSE_KL), groups, pairs, spec.confidence),
        "summary": summary(evaluation, spec.confidence),
    }
    for name, table in tables.items():
        write_csv(out / f"{name}.csv", table)
    say("done: " + ", ".join(f"{row['run']} {row['accuracy']:.1%}" for _, row in tables["summary"].iterrows()))


def _models(spec: MakeTables, results: Path) -> pd.DataFrame:
    rows = []
    for model in spec.models:
        evaluated = read_manifest(results / f"evaluation/models/{model}.json", "evaluation")
        rows.append({"model": model, **_outcome(evaluated.result)})
    return pd.DataFrame(rows)


def _outcome(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("accuracy", "reverse_kl", "completion_length", "finished", "completions")}


def _evaluation(spec: MakeTables, results: Path, models: pd.DataFrame) -> tuple[pd.DataFrame, dict[State, Outcome]]:
    """A row for each run, seed and kept step: outcomes, and the cumulative cost of getting there, gates included.

    A prediction is a run here, with a row for each step that it starts from: what its run had cost by then, and what
    choosing how far to predict took. Beside it, each state's outcomes on each problem, in the order of the problems.
    """
    base = models.set_index("model").to_dict("index")
    rows, per_problem = [], {}
    ledgers: dict[tuple[str, int], tuple[pd.DataFrame, float, float]] = {}
    for about in spec.runs:
        run = about.run
        student, teacher = (_parameters(results, model) for model in (about.student, about.teacher))
        for seed in spec.seeds:
            cost = read_parquet(results / f"runs/{run}/seed{seed}/cost.parquet")
            cost["flops"] = ledger_flops(cost, student, teacher)
            ledgers[run, seed] = cost, student, teacher
            for step in [0, *about.boundaries]:
                outcome = base[about.student]
                if step:
                    outcome, per_problem[run, seed, step] = _evaluated(results, run, seed, step)
                rows.append({"run": run, "seed": seed, "step": step, **outcome, **_spent(cost[cost["step"] <= step])})
    for predicted in spec.predictions:
        name = predicted.prediction
        for seed, step in itertools.product(spec.seeds, predicted.steps):
            cost, student, teacher = ledgers[predicted.run, seed]
            path = results / f"predictions/{name}/seed{seed}/{step}/prediction.json"
            choosing = pd.DataFrame(read_manifest(path, "prediction").recorded["cost"], columns=cost.columns)
            choosing["flops"] = ledger_flops(choosing, student, teacher)
            spent = pd.concat([cost[cost["step"] <= step], choosing])
            outcome, per_problem[name, seed, step] = _evaluated(results, name, seed, step)
            rows.append({"run": name, "seed": seed, "step": step, **outcome, **_spent(spent)})
    return pd.DataFrame(rows), per_problem


def _evaluated(results: Path, run: str, seed: int, step: int) -> tuple[dict[str, Any], Outcome]:
    """What a state did, and on each problem."""
    evaluated = read_manifest(results / f"evaluation/{run}/seed{seed}/{step}.json", "evaluation")
    return _outcome(evaluated.result), _by_problem(evaluated)


def _spent(cost: pd.DataFrame) -> dict[str, Any]:
    """What rows of a cost ledger add up to, and the gates' part of it."""
    gate = cost[cost["stage"].str.startswith("gate")]
    return {
        **{column: cost[column].sum() for column in COSTS},
        "gate_generated_tokens": gate["generated_tokens"].sum(),
        "gate_flops": gate["flops"].sum(),
        "gate_seconds": gate["seconds"].sum(),
    }


def _by_problem(evaluated: Manifest) -> Outcome:
    columns = ["index", "reward", "reverse_kl", "tokens"]
    items = pd.read_parquet(evaluated.file(f"{evaluated.path.stem}.items.parquet"), columns=columns)
    problems, rows = np.unique(items["index"], return_inverse=True)
    # numpy's sums: pandas would skip NaN, and weights that overflowed would look good
    rewards, divergence, tokens = (np.bincount(rows, items[name], len(problems)) for name in columns[1:])
    return Outcome(rewards / np.bincount(rows), divergence, tokens)


def _parameters(results: Path, model: str) -> float:
    return float(read_manifest(results / f"models/{model}/manifest.json", "model").result["parameters"])


def _extrapolation(spec: MakeTables, results: Path) -> pd.DataFrame:
    """A row for each gate value: the current weights (coefficient 0) and every candidate tried."""
    columns = [
        "run",
        "seed",
        "step",
        "metric",
        "coefficient",
        "value",
        "deviation",
        "accepted",
        "selected",
        "tie",
        "update_norm",
    ]
    rows: list[dict[str, Any]] = []
    for run, steps, pattern in _decisions(spec):
        for seed, step in itertools.product(spec.seeds, steps):
            decided = read_manifest(results / pattern.format(run=run, seed=seed, step=step)).result
            rows += [{"run": run, "seed": seed, "step": step, **row} for row in _of_record(decided)]
    for about in spec.runs:
        for seed in spec.seeds if about.every_step else []:
            metrics = read_parquet(results / f"runs/{about.run}/seed{seed}/metrics.parquet")
            own = {"run": about.run, "seed": seed, "metric": about.metric}
            rows += [{**own, **row} for row in _of_steps(metrics)]
    return pd.DataFrame(rows, columns=columns)


def _decisions(spec: MakeTables) -> Iterator[tuple[str, Sequence[int], str]]:
    """(run or prediction, the steps at which a gate decided for it, where the decisions are)."""
    for about in spec.runs:
        yield about.run, about.triggers, "runs/{run}/seed{seed}/extrapolation/{step}/decision.json"
    for predicted in spec.predictions:
        yield predicted.prediction, predicted.steps, "predictions/{run}/seed{seed}/{step}/prediction.json"


def _of_record(decided: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for trial in [decided["current"], *decided["trials"]]:
        yield {
            "metric": decided["metric"],
            "coefficient": trial["coefficient"],
            "value": trial["value"],
            "deviation": pd.Series(trial["per_item"], dtype=float).std(),
            "accepted": trial.get("accepted", True),
            "selected": trial["coefficient"] == decided["coefficient"],
            "tie": _tie(trial, decided["current"]),
            "update_norm": decided["update_norm"]["moving"],
        }


def _tie(trial: dict[str, Any], current: dict[str, Any]) -> bool:
    """Whether the gate saw no difference between a candidate and the current weights. Older decisions have no mark."""
    if trial is current or trial["value"] is None:
        return False
    return bool(trial.get("tie", trial["value"] == current["value"]))


def _of_steps(metrics: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Of a run that extrapolates after every step: its metrics say what each search tried."""
    for _, row in metrics.iterrows():
        for coefficient, value in zip(row["trial_coefficients"], row["trial_values"], strict=True):
            yield {
                "step": row["step"],
                "coefficient": coefficient,
                "value": value,
                "accepted": coefficient == 0 or coefficient in row["accepted_coefficients"],
                "selected": coefficient == row["coefficient"],
                "tie": coefficient != 0 and value == row["trial_values"][0],
                "update_norm": row["update_norm"],
            }


def summary(evaluation: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Where each run ends: accuracy and reverse KL with intervals over seeds, and what it cost, gates included."""
    rows = []
    for run, group in evaluation.groupby("run", sort=False):
        last = group[group["step"] == group["step"].max()]
        row: dict[str, Any] = {"run": run, "steps": last["step"].iloc[0], "seeds": len(last)}
        for column in ("accuracy", "reverse_kl"):
            mean, low, high = mean_interval(last[column].tolist(), confidence)
            row |= {column: mean, f"{column}_low": low, f"{column}_high": high}
        row |= {column: last[column].mean() for column in COSTS}
        tokens = last["generated_tokens"].sum()
        row["gate_token_share"] = last["gate_generated_tokens"].sum() / tokens if tokens else math.nan
        rows.append(row)
    return pd.DataFrame(rows)
