"""Figures of interventions: how accurate variants of an update are (paper section 3, items 1, 3, 4, 6 and 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from effopd.report.figures.style import (
    curve,
    end_of,
    label_panel,
    looks,
    means,
    nats_axis,
    panels,
    stacked,
    table_of,
    title,
)
from effopd.specs.reports import PlotFigure

METRICS = {"accuracy": "accuracy", "reverse_kl": "reverse KL (nats)"}
CLOSE = 1e-4  # nats: nearer to the teacher than this is not drawn (its own update gets there exactly)


def accuracy_vs_norm(spec: PlotFigure, results: Path) -> Figure:
    """Accuracy and reverse KL against the distance to the base: along the final update, and in training."""
    table = _variants(results)
    names = {"equal_norm": "base + a ΔW", "path": "along training"}
    figure, grid = _grid(spec, _parts(table, "analysis", names), "norm")
    smallest = table.loc[table["norm"] > 0, "norm"].min()
    for axes in grid.ravel():
        _from_zero(axes, smallest, table["norm"].max())
    for axes in grid[-1]:
        axes.set_xlabel("‖W − W_base‖ (Frobenius)")
    return figure


def sliding_window(spec: PlotFigure, results: Path) -> Figure:
    """The final update inside a window of layers, and the base outside."""
    table = _variants(results)
    base = table[table["variant"] == "base"]
    windows = table[table["analysis"] == "window"]
    names = {"attention": "attention only", "mlp": "MLP only", "layer": "whole layers"}
    figure, grid = _grid(spec, _parts(windows, "part", names), "layer")
    for axes_row, metric in zip(grid, METRICS, strict=True):
        for axes in axes_row:
            if len(base):
                axes.axhline(base[metric].iloc[0], color="0.6", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
            ticks = np.unique(windows["layer"].dropna())
            axes.set_xticks(ticks[:: max(1, -(-len(ticks) // 12))])
    for axes in grid[-1]:
        axes.set_xlabel("center of the window (layer)")
    return figure


def reconstruction(spec: PlotFigure, results: Path) -> Figure:
    """Only the leading, or only the last singular directions of each matrix's update."""
    table = _variants(results)
    table = table[table["analysis"] == "reconstruction"]
    names = {"top": "leading directions, rescaled", "bottom": "last directions"}
    parts = _parts(table, "part", names)
    figure, grid = _grid(spec, parts, "amount")
    for axes in grid.ravel():
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for column, part in enumerate(parts.values()):
        if part["amount"].gt(0).any() and part["amount"].min() < 0.2:
            smallest = part.loc[part["amount"] > 0, "amount"].min()
            for axes in grid[:, column]:
                _from_zero(axes, smallest, 1.0, [smallest, *(x for x in (0.1, 1.0) if x > 3 * smallest)])
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    for axes in grid[-1]:
        axes.set_xlabel("share of the directions kept")
    return figure


def _parts(table: pd.DataFrame, column: str, names: dict[str, str]) -> dict[str, pd.DataFrame]:
    """The rows of each kind in a column, by the kind's name; those that there are none of are left out."""
    parts = {name: table[table[column] == kind] for kind, name in names.items()}
    return {name: rows for name, rows in parts.items() if len(rows)}


def norm_scaling(spec: PlotFigure, results: Path) -> Figure:
    """An early checkpoint's update, scaled towards the final one's norm."""
    table = _variants(results)
    table = table[table["analysis"] == "norm_scaling"]
    figure, grid = panels(spec, 2)
    for number, (axes, (metric, name)) in enumerate(zip(grid[0], METRICS.items(), strict=True)):
        ends = _draw(axes, spec, table, "amount", metric)
        axes.axvline(1, color="0.6", linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
        axes.set_xlabel("β (at 1: the final norm)")
        title(axes, number, name)
        if number == 1 or stacked(spec, 2) > 1:
            label_panel(axes, ends, spec, stacked(spec, 2))
    return figure


def embeddings(spec: PlotFigure, results: Path) -> Figure:
    """How far representations of the base's own text moved, and what putting the base's embeddings back costs."""
    chosen = set(spec.interventions)
    figure, (row,) = panels(spec, len(chosen & {"representation", "embeddings"}))
    waiting = list(row)
    if "representation" in chosen:
        axes = waiting.pop(0)
        table = means(table_of(results, "dynamics_representation"))
        table = table.assign(layer=table["layer"].astype(float))
        table = table[table["step"] == table.groupby("run")["step"].transform("max")]
        ends = []
        for run, look in looks(spec).items():
            of_run = table[table["run"] == run]
            if len(of_run):
                curve(axes, of_run, "layer", "cosine", look)
                ends.append(end_of(of_run, "layer", "cosine", look))
        ticks = np.unique(table["layer"])
        axes.set_xticks(ticks[:: max(1, -(-len(ticks) // 12))])
        axes.set_xlabel("layer (0: token embeddings)")
        axes.set_ylabel("cosine to the base")
        title(axes, 0, "representations")
        if len(row) == 1:  # otherwise the other panel names the runs
            label_panel(axes, ends, spec, 1)
    if "embeddings" in chosen:
        axes = waiting.pop(0)
        _replaced(axes, spec, _variants(results))
        title(axes, len(row) - 1, "base embeddings back")
    return figure


def _replaced(axes: Axes, spec: PlotFigure, table: pd.DataFrame) -> None:
    """Differences in accuracy, one row per run, named at the left."""
    table = table[table["analysis"] == "embeddings"]
    present = [(run, look) for run, look in looks(spec).items() if run in set(table["run"])]
    parts = [part for part in ("embedding", "embedding_and_head") if part in set(table["part"])]
    for height, (run, look) in enumerate(reversed(present)):
        for number, part in enumerate(parts):
            rows = table[(table["run"] == run) & (table["part"] == part)]
            if not len(rows):
                continue
            row, y = rows.iloc[0], height + 0.22 * (number - (len(parts) - 1) / 2)
            face = look.color if number == 0 else "white"
            axes.hlines(
                y, row["accuracy_difference_low"], row["accuracy_difference_high"], color=look.color, linewidth=1
            )
            axes.plot(row["accuracy_difference"], y, color=look.color, marker=look.marker, mfc=face)
    axes.axvline(0, color="0.6", linewidth=0.9, zorder=0)
    axes.set_yticks(range(len(present)), [look.label for _, look in reversed(present)], fontsize=7.5)
    for tick, (_, look) in zip(axes.get_yticklabels(), reversed(present), strict=True):
        tick.set_color(look.color)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+.0f}"))
    axes.set_xlabel("accuracy, difference in points" + ("\n(open: the head too)" if len(parts) > 1 else ""))


def _grid(spec: PlotFigure, parts: Mapping[str, pd.DataFrame], x: str) -> tuple[Figure, np.ndarray]:
    """A row for each metric, a column for each part of the table; the last column's lines are named."""
    figure, grid = panels(spec, len(parts), rows=len(METRICS), sharex="col", sharey="row")
    rows = len(METRICS) * stacked(spec, len(parts))
    for line, (metric, name) in enumerate(METRICS.items()):
        for column, (part, table) in enumerate(parts.items()):
            axes = grid[line, column]
            ends = _draw(axes, spec, table, x, metric)
            title(axes, line * len(parts) + column, part)
            if column == len(parts) - 1 or rows > len(METRICS):
                label_panel(axes, ends, spec, rows)
            if column == 0 or rows > len(METRICS):
                axes.set_ylabel(name)
    return figure, grid


def _draw(axes: Axes, spec: PlotFigure, table: pd.DataFrame, x: str, metric: str) -> list[Any]:
    ends = []
    for run, look in looks(spec).items():
        of_run = table[table["run"] == run]
        if (of_run[metric] > CLOSE).any():
            if metric == "reverse_kl":
                of_run = of_run[of_run[metric] > CLOSE]
                curve(axes, of_run, x, metric, look, floor=0.25)
            else:
                bounds = {name: of_run[name].clip(0, 1) for name in ("accuracy_low", "accuracy_high")}
                curve(axes, of_run.assign(**bounds), x, metric, look)
            ends.append(end_of(of_run, x, metric, look))
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    elif ends:
        nats_axis(axes)
    return ends


def _from_zero(axes: Axes, smallest: float, largest: float, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic axis from `smallest` on, with 0 before it; ticks at powers of ten unless given."""
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    decades = 10.0 ** np.arange(np.ceil(np.log10(2 * smallest)), np.floor(np.log10(largest)) + 1)
    axes.set_xticks([0.0, *(decades if ticks is None else ticks)])
    axes.minorticks_off()
    axes.set_xlim(-0.15 * smallest, 1.15 * largest)


def _variants(results: Path) -> pd.DataFrame:
    table = means(table_of(results, "dynamics_interventions"))
    return table.assign(layer=pd.to_numeric(table["layer"], errors="coerce"))
