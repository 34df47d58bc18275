"""The tables of the comparison, from evaluations, ledgers and cost ledgers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from effopd.flops import ledger_flops
from effopd.runtime.artifacts import atomic_path, read_manifest
from effopd.runtime.cost import SPENT
from effopd.runtime.progress import say
from effopd.statistics import mean_interval, ratio_interval

COSTS = (*SPENT, "flops")
RATIOS = {"steps": "step", "generated tokens": "generated_tokens", "seconds": "seconds"}


def make_tables(spec: dict[str, Any], results: Path, out: Path) -> None:
    """Write models, evaluation, extrapolation, speedup and summary as CSV files into the folder `out`."""
    models = _models(spec, results)
    evaluation = _evaluation(spec, results, models)
    tables = {
        "models": models,
        "evaluation": evaluation,
        "extrapolation": _extrapolation(spec, results),
        "speedup": speedup(evaluation, spec["evaluation"]["baseline"], spec["evaluation"]["confidence"]),
        "summary": summary(evaluation, spec["evaluation"]["confidence"]),
    }
    for name, table in tables.items():
        with atomic_path(out / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False, float_format="%.6g")
    say("done: " + ", ".join(f"{row['run']} {row['accuracy']:.1%}" for _, row in tables["summary"].iterrows()))


def _models(spec: dict[str, Any], results: Path) -> pd.DataFrame:
    rows = []
    for model in spec["models"]:
        evaluated = read_manifest(results / f"evaluation/models/{model}.json", "evaluation")
        rows.append({"model": model, **_outcome(evaluated.result)})
    return pd.DataFrame(rows)


def _outcome(result: dict[str, Any]) -> dict[str, Any]:
    return {key: result[key] for key in ("accuracy", "reverse_kl", "completion_length", "finished", "completions")}


def _evaluation(spec: dict[str, Any], results: Path, models: pd.DataFrame) -> pd.DataFrame:
    """A row for each run, seed and kept step: outcomes, and the cumulative cost of getting there, gates included."""
    base = models.set_index("model").to_dict("index")
    rows = []
    for about in spec["runs"]:
        run = about["run"]
        student, teacher = (_parameters(results, about[role]) for role in ("student", "teacher"))
        for seed in spec["seeds"]:
            cost = pd.read_parquet(results / f"runs/{run}/seed{seed}/cost.parquet")
            cost["flops"] = ledger_flops(cost, student, teacher)
            for step in [0, *about["boundaries"]]:
                spent = cost[cost["step"] <= step]
                gate = spent[spent["stage"].str.startswith("gate")]
                path = results / f"evaluation/{run}/seed{seed}/{step}.json"
                outcome = _outcome(read_manifest(path, "evaluation").result) if step else base[about["student"]]
                rows.append(
                    {
                        "run": run,
                        "seed": seed,
                        "step": step,
                        **outcome,
                        **{column: spent[column].sum() for column in COSTS},
                        "gate_generated_tokens": gate["generated_tokens"].sum(),
                        "gate_flops": gate["flops"].sum(),
                        "gate_seconds": gate["seconds"].sum(),
                    }
                )
    return pd.DataFrame(rows)


def _parameters(results: Path, model: str) -> float:
    return float(read_manifest(results / f"models/{model}/manifest.json", "model").result["parameters"])


def _extrapolation(spec: dict[str, Any], results: Path) -> pd.DataFrame:
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
        "update_norm",
    ]
    rows = []
    for about in spec["runs"]:
        run = about["run"]
        for seed in spec["seeds"]:
            for step in about["triggers"]:
                ledger = read_manifest(results / f"runs/{run}/seed{seed}/extrapolation/{step}/ledger.json", "ledger")
                for trial in [ledger.result["current"], *ledger.result["trials"]]:
                    per_item = pd.Series(trial["per_item"], dtype=float)
                    rows.append(
                        {
                            "run": run,
                            "seed": seed,
                            "step": step,
                            "metric": ledger.result["metric"],
                            "coefficient": trial["coefficient"],
                            "value": trial["value"],
                            "deviation": per_item.std(),
                            "accepted": trial.get("accepted", True),
                            "selected": trial["coefficient"] == ledger.result["coefficient"],
                            "update_norm": ledger.result["update_norm"]["moving"],
                        }
                    )
    return pd.DataFrame(rows, columns=columns)


def speedup(evaluation: pd.DataFrame, baseline: str, confidence: float) -> pd.DataFrame:
    """What reaching the baseline's last accuracy took, in steps, generated tokens and seconds, validation counted.

    For each run and seed: the target (what the baseline reaches at its last step with that seed), the first kept step
    that reaches it, and ratios (baseline's cost of reaching it over this run's; above 1 is faster). Rows whose `seed`
    is "mean" hold the geometric mean of the ratios with its interval, over the seeds that reached the target.
    """
    rows: list[dict[str, Any]] = []
    firsts: dict[tuple[str, Any], pd.Series | None] = {}
    targets: dict[Any, float] = {}
    for (run, seed), group in evaluation.groupby(["run", "seed"], sort=False):
        reference = evaluation[(evaluation["run"] == baseline) & (evaluation["seed"] == seed)]
        targets[seed] = reference.loc[reference["step"].idxmax(), "accuracy"]
        reached = group[(group["accuracy"] >= targets[seed]) & (group["step"] > 0)]
        firsts[run, seed] = reached.loc[reached["step"].idxmin()] if len(reached) else None
    for run in evaluation["run"].unique():
        ratios: dict[str, list[float]] = {name: [] for name in RATIOS}
        seeds = evaluation.loc[evaluation["run"] == run, "seed"].unique()
        for seed in seeds:
            first, reference = firsts[run, seed], firsts[baseline, seed]
            row: dict[str, Any] = {"run": run, "seed": seed, "target_accuracy": targets[seed]}
            row["reached"] = int(first is not None)
            if first is not None and reference is not None:
                for name, column in RATIOS.items():
                    ratio = reference[column] / first[column]
                    ratios[name].append(ratio)
                    row |= {_column("first", name): first[column], _column("ratio", name): ratio}
            rows.append(row)
        mean: dict[str, Any] = {"run": run, "seed": "mean"}
        mean["target_accuracy"] = sum(targets[seed] for seed in seeds) / len(seeds)
        mean["reached"] = len(ratios["steps"])
        for name, values in ratios.items():
            centre, low, high = ratio_interval(values, confidence)
            column = _column("ratio", name)
            mean |= {column: centre, f"{column}_low": low, f"{column}_high": high}
        rows.append(mean)
    columns = ["run", "seed", "target_accuracy", "reached"]
    columns += [_column("first", name) for name in RATIOS]
    columns += [f"{_column('ratio', name)}{bound}" for name in RATIOS for bound in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns)


def _column(what: str, name: str) -> str:
    short = {"steps": "step", "generated tokens": "tokens", "seconds": "seconds"}[name]
    return f"{what}_{short}" if what == "first" else f"{short}_{what}"


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
