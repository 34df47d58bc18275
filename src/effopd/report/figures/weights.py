"""Figures of what training did to the weights: how far, where, along how many directions, and how early."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator, PercentFormatter

from effopd.evaluation.statistics import mean_interval
from effopd.report.figures.style import (
    Look,
    curve,
    end_of,
    label_panel,
    looks,
    means,
    panels,
    stacked,
    step_axis,
    table_of,
    title,
)
from effopd.report.tables import read_parquet
from effopd.specs.reports import LooksSpec, PlotFigure

MODULES = ("q", "k", "v", "o", "qkv", "gate", "up", "gate_up", "down", "router", "norm", "bias", "embedding", "lm_head")
SHOWN_FIRST = ("down", "up", "gate_up", "o", "v")  # the matrix of the middle layer whose path is drawn
SPECTRAL = {
    "spectral_norm": "spectral norm σ₁",
    "spectral_to_frobenius": "ρ = σ₁ / ‖ΔW‖",
    "effective_rank": "effective rank",
    "top1pct_norm_ratio": "R of the top 1 % of directions",
}


def norms(spec: PlotFigure, results: Path) -> Figure:
    """How far each layer and each module type moved, at the last step."""
    table = _last(means(table_of(results, "dynamics_norms")))
    layers = table[(table["module"] == "all") & table["layer"].str.fullmatch(r"\d+")]
    layers = layers.assign(layer=layers["layer"].astype(int))
    modules = table[(table["layer"] == "all") & (table["module"] != "all")]
    order = [module for module in (*MODULES, "other") if module in set(modules["module"])]
    figure, ((left, right),) = panels(spec, 2)
    styles, ends = looks(spec), []
    present = [run for run in styles if run in set(table["run"])]
    for number, run in enumerate(present):
        look = styles[run]
        curve(left, layers[layers["run"] == run], "layer", "frobenius_norm", look, floor=0.25)
        of_run = modules[modules["run"] == run].set_index("module").reindex(order)
        places = np.arange(len(order)) + 0.7 * (number / max(1, len(present) - 1) - 0.5)
        values = of_run["frobenius_norm"]
        right.vlines(
            places,
            of_run["frobenius_norm_low"].clip(lower=values / 4),
            of_run["frobenius_norm_high"],
            color=look.color,
            linewidth=1,
        )
        right.plot(places, values, color=look.color, marker=look.marker, linestyle="")
        ends.append((float(places[-1]), float(values.iloc[-1]), look.label, look.color))
    for axes in (left, right):
        axes.set_yscale("log")
    left.set_ylabel("‖ΔW‖ (Frobenius)")
    _whole_ticks(left, layers["layer"])
    left.set_xlabel("layer")
    if stacked(spec, 2) > 1:
        right.set_xticks(range(len(order)), order, rotation=90, fontsize=7)
    else:
        right.set_xticks(range(len(order)), order, rotation=40, ha="right", rotation_mode="anchor")
    right.grid(axis="x", visible=False)
    for place in np.arange(1, len(order)) - 0.5:
        right.axvline(place, color="0.9", linewidth=0.6, zorder=0)
    title(left, 0, "by layer")
    title(right, 1, "by module type")
    label_panel(right, ends, spec, stacked(spec, 2))
    return figure


def spectra(spec: PlotFigure, results: Path) -> Figure:
    """The four spectral metrics, means over matrices, along training."""
    table = means(table_of(results, "dynamics_spectra"))
    table = table[table["module"] == "all"]
    figure, grid = panels(spec, 2, rows=2)
    styles, rows = looks(spec), 2 * stacked(spec, 2)
    runs = _runs_only(table)
    for number, (axes, (metric, name)) in enumerate(zip(grid.ravel(), SPECTRAL.items(), strict=True)):
        ends = []
        for run, look in styles.items():
            of_run = table[table["run"] == run]
            if run.startswith("models/"):
                _level(axes, of_run, metric, look, runs["step"].max())
            else:
                curve(axes, of_run, "step", metric, look, floor=0.25 if metric == "spectral_norm" else None)
            if len(of_run):
                ends.append(end_of(of_run.assign(step=runs["step"].max()), "step", metric, look))
        step_axis(axes, runs["step"].unique().tolist(), "optimizer steps")
        if metric == "spectral_norm":
            axes.set_yscale("log")
        elif metric != "effective_rank":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        title(axes, number, name)
        if number % 2 == 1 or rows > 2:
            label_panel(axes, ends, spec, rows)
    return figure


def alignment(spec: PlotFigure, results: Path) -> Figure:
    """How far the directions of a step already are those of the final one."""
    table = _runs_only(means(table_of(results, "dynamics_alignment")))
    names = {"paired_cosine": "paired by index", "principal_cosine": "principal angles"}
    figure, (row,) = panels(spec, 2, sharey=True)
    for number, (axes, (metric, name)) in enumerate(zip(row, names.items(), strict=True)):
        ends = []
        for run, look in looks(spec).items():
            of_run = table[table["run"] == run]
            if of_run[metric].notna().any():
                curve(axes, of_run, "step", metric, look)
                ends.append(end_of(of_run, "step", metric, look))
        step_axis(axes, table["step"].unique().tolist(), "optimizer steps")
        axes.set_ylim(0, 1.02)
        title(axes, number, name)
        if number == len(row) - 1 or stacked(spec, 2) > 1:
            label_panel(axes, ends, spec, stacked(spec, 2))
    row[0].set_ylabel("cosine to the final directions")
    return figure


def sparsity(spec: PlotFigure, results: Path) -> Figure:
    """The share of elements that moved by no more than a tolerance, at the last step."""
    rows = []
    for run, seed, folder in subjects(spec, results):
        table = read_parquet(folder / "sparsity.parquet")
        table = table[table["step"] == table["step"].max()]
        unmoved = (table["sparsity"] * table["elements"]).groupby(table["tolerance"]).sum()
        share = unmoved / table.groupby("tolerance")["elements"].sum()
        rows += [{"run": run, "seed": seed, "tolerance": t, "share": value} for t, value in share.items()]
    found = pd.DataFrame(rows)
    figure, axes = plt.subplots(layout="constrained")
    ends, positive = [], found.loc[found["tolerance"] > 0, "tolerance"]
    for run, look in looks(spec).items():
        grouped = found[found["run"] == run].groupby("tolerance")["share"]
        values = [mean_interval(group.tolist(), spec.confidence) for _, group in grouped]
        if not values:
            continue
        of_run = pd.DataFrame(values, columns=["share", "share_low", "share_high"]).clip(0, 1)
        of_run["tolerance"] = list(grouped.groups)
        curve(axes, of_run, "tolerance", "share", look)
        ends.append(end_of(of_run, "tolerance", "share", look))
    axes.set_xscale("symlog", linthresh=positive.min(), linscale=0.5)
    ticks = sorted(found["tolerance"].unique())
    axes.set_xticks(ticks, ["0" if t == 0 else f"$10^{{{np.log10(t):.0f}}}$" for t in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tolerance")
    axes.set_ylabel("share of elements with |ΔW| ≤ tolerance")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    label_panel(axes, ends, spec, 1)
    return figure


def trajectory(spec: PlotFigure, results: Path) -> Figure:
    """The path of one matrix's leading direction on its two principal axes, one panel per run."""
    return _paths(spec, results, "pc1", "pc2", "first and second principal axis of each run's own path")


def trajectory_map(spec: PlotFigure, results: Path) -> Figure:
    """The same directions as a t-SNE map, of the runs with enough checkpoints for one."""
    return _paths(spec, results, "tsne1", "tsne2", "t-SNE map: only who is whose neighbor means anything")


def _paths(spec: PlotFigure, results: Path, x: str, y: str, caption: str) -> Figure:
    found: list[tuple[str, int | None, pd.DataFrame, pd.DataFrame]] = []
    for run, seed, folder in subjects(spec, results):
        table = read_parquet(folder / "trajectory.parquet") if (folder / "trajectory.parquet").is_file() else None
        if table is None or run in (name for name, *_ in found) or table[x].isna().all():
            continue
        parameter = _middle(table)
        found.append((run, seed, table[table["parameter"] == parameter], table))
    columns = min(len(found), max(1, int(spec.options.width // 2.2)))
    figure, grid = plt.subplots(-(-len(found) // columns), columns, squeeze=False, layout="constrained")
    styles = looks(spec)
    for axes in grid.ravel()[len(found) :]:
        axes.remove()
    for axes, (run, seed, path, table) in zip(grid.ravel(), found, strict=False):
        look = styles[run]
        axes.plot(path[x], path[y], color=look.color, linestyle=look.line, linewidth=1, alpha=0.6, zorder=2)
        axes.scatter(path[x], path[y], c=[look.color], s=14 + 30 * np.linspace(0, 1, len(path)), zorder=3)
        for place, step in enumerate(path["step"]):
            if place in (0, len(path) - 1):
                axes.annotate(
                    f"step {step}",
                    (path[x].iloc[place], path[y].iloc[place]),
                    xytext=(6, 5),
                    textcoords="offset points",
                    fontsize=7,
                    color="0.25",
                    path_effects=[withStroke(linewidth=2.5, foreground="white")],
                    zorder=4,
                )
        explained = table.groupby("parameter")["explained_variance_ratio"].first().mean()
        named = look.label if run.startswith("models/") else f"{look.label}, seed {seed}"
        axes.set_title(f"{named}\nEVR {explained:.2f}, {len(path)} steps", fontsize=8, color=look.color)
        axes.margins(0.22)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(True)
            side.set_color("0.8")
    parameter = found[0][2]["parameter"].iloc[0].removesuffix(".weight")
    figure.supxlabel(f"{parameter}, first left singular vector of ΔW; {caption}", fontsize=8)
    return figure


def subjects(spec: LooksSpec, results: Path) -> list[tuple[str, int | None, Path]]:
    """(run or models/<name>, seed, folder) of everything whose weights were analyzed."""
    runs = [(run, seed, results / f"dynamics/{run}/seed{seed}") for run in spec.runs for seed in spec.seeds]
    models = [(f"models/{name}", None, results / f"dynamics/models/{name}") for name in spec.models]
    return [
        (run, seed, folder) for run, seed, folder in (*runs, *models) if (folder / "weight_analysis.json").is_file()
    ]


def _middle(table: pd.DataFrame) -> str:
    """The matrix to show: of the middle layer, the first there is of SHOWN_FIRST, or else any."""
    layer = sorted(table["layer"].unique())[table["layer"].nunique() // 2]
    here = table[table["layer"] == layer]
    rank = {module: number for number, module in enumerate(SHOWN_FIRST)}
    return str(min(here["parameter"].unique(), key=lambda p: rank.get(_module(here, p), len(rank))))


def _module(table: pd.DataFrame, parameter: str) -> str:
    return str(table.loc[table["parameter"] == parameter, "module"].iloc[0])


def _last(table: pd.DataFrame) -> pd.DataFrame:
    """Each run's rows at its last step."""
    return table[table["step"] == table.groupby("run")["step"].transform("max")]


def _runs_only(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table["run"].str.startswith("models/")]


def _level(axes: Axes, rows: pd.DataFrame, y: str, look: Look, last: int) -> None:
    """A model's last value as a line across: its steps are not the runs'."""
    if len(rows):
        value = rows.sort_values("step")[y].iloc[-1]
        axes.hlines(value, 1, last, color=look.color, linestyle=look.line, linewidth=1.2, zorder=2)


def _whole_ticks(axes: Axes, values: pd.Series) -> None:
    ticks = np.unique(values)
    axes.set_xticks(ticks[:: max(1, -(-len(ticks) // 12))])
