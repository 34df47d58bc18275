"""The interactive page: every metric of every layer and module type over training, with the values on hover."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from jinja2.utils import htmlsafe_json_dumps

from effopd.artifacts.manifests import write_text
from effopd.common.progress import say
from effopd.dynamics.norms import total_norms
from effopd.report.figures.style import looks
from effopd.report.figures.weights import MODULES, subjects
from effopd.report.tables import read_parquet
from effopd.specs.reports import WriteExplorer

SHADES = 24
# Name, label, unit, whether its colors go by orders of magnitude, and the lowest value of its scale if it has one.
METRICS: tuple[tuple[str, str, str, bool, float | None], ...] = (
    ("frobenius_norm", "norm of the update, ‖ΔW‖", "Frobenius norm", True, None),
    ("relative_norm", "relative norm, ‖ΔW‖ / ‖W‖", "share of the base's norm", True, None),
    ("spectral_norm", "spectral norm, σ₁", "singular value", True, None),
    ("spectral_to_frobenius", "ρ = σ₁ / ‖ΔW‖", "fraction", False, 0.0),
    ("effective_rank", "effective rank", "directions", False, 0.0),
    ("effective_rank_squared", "effective rank of the energy", "directions", False, 0.0),
    ("top1pct_norm_ratio", "R of the top 1 % of directions", "fraction", False, 0.0),
    ("left_principal_cosine", "alignment with the final update", "mean cosine of the principal angles", False, 0.0),
)


def write_explorer(spec: WriteExplorer, results: Path, out: Path) -> None:
    """Write the page `out` from the weight analyses of all runs, seeds and models: one file, no network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("effopd.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    data = explorer_data(spec, results)
    text = htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False)  # no label can end or begin a script
    page = environment.get_template("explorer.html.jinja").render(data=text)
    write_text(out, page)
    say(f"done: {len(data['subjects'])} runs and seeds, {len(page) // 1024} kB")


def explorer_data(spec: WriteExplorer, results: Path) -> dict[str, Any]:
    """What the page shows: for each subject, metric and step a value for each layer and module, null if none is.

    A color scale is fixed for each metric: from its least to its largest value anywhere.
    """
    styles = looks(spec)
    tables = [(run, seed, _values(folder)) for run, seed, folder in subjects(spec, results)]
    everything = pd.concat([table for _, _, table in tables])
    layers = sorted(everything["layer"].unique().tolist())
    modules = [m for m in (*MODULES, "other") if m in set(everything["module"])]
    metrics: list[dict[str, Any]] = []
    for name, label, unit, logarithmic, lowest in METRICS:
        shown = everything[name].replace([np.inf, -np.inf], np.nan).dropna()
        shown = shown[shown > 0] if logarithmic else shown
        if not len(shown):
            continue
        least, largest = float(shown.min()), float(shown.max())
        scale = {"log": logarithmic, "min": least if lowest is None else lowest, "max": largest}
        metrics.append({"name": name, "label": label, "unit": unit, **scale})
    return {
        "layers": layers,
        "modules": modules,
        "metrics": metrics,
        "colors": [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps["cividis"](np.linspace(0, 1, SHADES))],
        "subjects": [
            {
                "name": styles[run].label + ("" if seed is None else f", seed {seed}"),
                "steps": sorted(int(step) for step in table["step"].unique()),
                "values": {metric["name"]: _grids(table, metric["name"], layers, modules) for metric in metrics},
            }
            for run, seed, table in tables
        ],
    }


def _values(folder: Path) -> pd.DataFrame:
    """One row per step, layer and module type: norms of all parameters, the others as means over matrices."""
    keys = ["step", "layer", "module"]
    norms = total_norms(read_parquet(folder / "norms.parquet").dropna(subset=["layer"]), keys)
    table = norms[[*keys, "frobenius_norm", "relative_norm"]].set_index(keys)
    for name in ("spectra", "alignment"):
        path = folder / f"{name}.parquet"
        if path.is_file():
            rows = read_parquet(path)
            columns = [metric for metric, *_ in METRICS if metric in rows and metric not in table]
            table = table.join(rows.groupby(keys)[columns].mean())
    return table.reindex(columns=[metric for metric, *_ in METRICS]).reset_index()


def _grids(table: pd.DataFrame, metric: str, layers: list[int], modules: list[str]) -> list[list[list[float | None]]]:
    """[step][layer][module], to four significant digits."""
    found = table.set_index(["step", "layer", "module"])[metric].to_dict()
    return [
        [[_rounded(found.get((step, layer, module), math.nan)) for module in modules] for layer in layers]
        for step in sorted(table["step"].unique())
    ]


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
