"""The tables on the weights: those of every subject put together, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from effopd.artifacts.manifests import read_manifest
from effopd.common.progress import say
from effopd.dynamics.norms import total_norms
from effopd.dynamics.variants import BASE, FINAL
from effopd.evaluation.statistics import bootstrap_interval, interval_columns, with_means
from effopd.report.tables import write_csv
from effopd.specs.reports import MakeDynamicsTables

ALL, NO_LAYER = "all", "none"
METRICS = ["spectral_norm", "spectral_to_frobenius", "effective_rank", "effective_rank_squared", "top1pct_norm_ratio"]
NORMS = ["frobenius_norm", "base_norm", "relative_norm", "share"]
ALIGNMENT = ["paired_cosine", "principal_cosine", "cosine_to_final", "explained_variance_ratio"]
OUTCOMES = ["norm", "relative_norm", "accuracy", "reverse_kl", "completion_length", "finished"]
DIFFERENCES = ["accuracy_difference", "reverse_kl_difference"]
VARIANT = ["analysis", "variant", "step", "part", "amount", "layer", "first_layer", "last_layer"]


def make_dynamics_tables(spec: MakeDynamicsTables, results: Path, out: Path) -> None:
    """Write the tables that spec.tables names as CSV files into the folder `out` (docs/dynamics.md)."""
    confidence = spec.confidence
    makers: dict[str, tuple[Callable[[dict[str, pd.DataFrame]], pd.DataFrame], list[str], list[str]]] = {
        "dynamics_spectra": (lambda tables: spectra(tables["spectra"]), ["step", "module"], METRICS),
        "dynamics_norms": (lambda tables: norms(tables["norms"]), ["step", "module", "layer"], NORMS),
        "dynamics_alignment": (alignment, ["step"], ALIGNMENT),
        "dynamics_interventions": (
            lambda tables: interventions(tables["interventions"], tables["interventions.items"], confidence),
            VARIANT,
            [*OUTCOMES, *DIFFERENCES, "recovered"],
        ),
        "dynamics_representation": (
            lambda tables: tables["representation"][["step", "layer", "cosine"]],
            ["step", "layer"],
            ["cosine"],
        ),
    }
    subjects = [(about, _tables(results / "dynamics" / about.subject)) for about in spec.subjects]
    for name in spec.tables:
        make: Callable[..., pd.DataFrame]
        make, keys, values = makers[name]
        parts = [made.assign(run=about.run, seed=about.seed) for about, tables in subjects if len(made := make(tables))]
        table = with_means(pd.concat(parts), keys, values, confidence) if parts else _empty(keys, values)
        write_csv(out / f"{name}.csv", table)
    say(f"done: {len(subjects)} subjects")


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a subject by name."""
    manifests = [read_manifest(folder / f"{name}.json") for name in ("weight_analysis", "interventions")
                 if (folder / f"{name}.json").is_file()]  # fmt: skip
    names = [(manifest, name) for manifest in manifests for name in manifest.files]
    return {name.removesuffix(".parquet"): pd.read_parquet(manifest.file(name)) for manifest, name in names}


def spectra(table: pd.DataFrame) -> pd.DataFrame:
    """Means over matrices, by step and module, and of all modules."""
    both = pd.concat([table, table.assign(module=ALL)])
    return both.groupby(["step", "module"], sort=False)[METRICS].mean().reset_index()


def norms(table: pd.DataFrame) -> pd.DataFrame:
    """Norms by step of each module, of each layer and of everything, with their shares of the squared norm."""
    placed = table.assign(layer=table["layer"].astype("string").fillna(NO_LAYER))
    groups = [
        total_norms(group, ["step", "module", "layer"])
        for group in (placed.assign(module=ALL, layer=ALL), placed.assign(layer=ALL), placed.assign(module=ALL))
    ]
    whole = groups[0].set_index("step")["frobenius_norm"]
    totals = pd.concat(groups)
    squares = whole.reindex(totals["step"]).to_numpy() ** 2
    share = np.divide(totals["frobenius_norm"] ** 2, squares, out=np.full(len(totals), np.nan), where=squares > 0)
    return totals.assign(share=share).drop(columns="elements").sort_values("step", kind="stable")


def alignment(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """How far each step before the last points where the last one does; no rows with one step alone."""
    if "alignment" not in tables:
        return pd.DataFrame(columns=["step", *ALIGNMENT])
    names = {"left_cosine": "paired_cosine", "left_principal_cosine": "principal_cosine"}
    found = tables["alignment"].rename(columns=names).groupby("step")[list(names.values())].mean()
    path = tables["trajectory"].groupby("step")[["cosine_to_final", "explained_variance_ratio"]].mean()
    return found.join(path).reset_index()


def interventions(table: pd.DataFrame, items: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """The variants of a subject with their paired differences to the final state, bootstrapped over problems."""
    by_problem = items.assign(completions=1).groupby(["variant", "index"])
    sums = by_problem[["reward", "completions", "reverse_kl", "tokens"]].sum(min_count=1).unstack("index")
    sums = sums.reindex(table["variant"])
    table = table.reset_index(drop=True)
    at = table.set_index("variant")
    for name, (top, bottom) in {"accuracy": ("reward", "completions"), "reverse_kl": ("reverse_kl", "tokens")}.items():
        difference = f"{name}_difference"
        reference = tuple(sums.loc[FINAL, column].to_numpy(float) for column in (top, bottom))
        bounds = bootstrap_interval(sums[top].to_numpy(float), sums[bottom].to_numpy(float), confidence, reference)
        table[difference] = table[name] - at.loc[FINAL, name]
        table[f"{difference}_low"], table[f"{difference}_high"] = bounds
    gained = at.loc[FINAL, "accuracy"] - at.loc[BASE, "accuracy"]
    table["recovered"] = (table["accuracy"] - at.loc[BASE, "accuracy"]) / gained if gained else np.nan
    return table.drop(columns="weights")


def _empty(keys: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=interval_columns(keys, values))
