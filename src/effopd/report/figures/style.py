"""What all figures share: a look for each run, and how axes, bands and labels are drawn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from scipy.optimize import isotonic_regression

from effopd.common.formatting import one_line
from effopd.report.tables import read_csv
from effopd.specs.reports import LooksSpec, PlotFigure

# Okabe-Ito, which colour-blind readers can tell apart; the baseline is black, models are gray and dashed.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"]
MARKERS = "osD^vPX"
GRAYS = ["#6b6b6b", "#a0a0a0", "#878787"]
DASHED = (0, (4, 2))
DOTTED = (0, (1, 1.5))
STYLE = {
    "svg.hashsalt": "effopd",  # the same file from the same data
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
LABEL_SIZE = 8.0
PANEL_WIDTH = 2.4  # inches that a panel needs, at least


@dataclass(frozen=True)
class Look:
    """How a run, or a model, is drawn and named in every figure."""

    label: str
    color: str
    marker: str
    line: Any = "-"


def drawable(spec: PlotFigure) -> PlotFigure:
    """The spec of a figure with labels and names of groups that are drawn as they are: no formulas, one line each."""
    labels = {run: _plain(label) for run, label in spec.labels.items()}
    return replace(spec, labels=labels, groups=[(_plain(name), runs) for name, runs in spec.groups])


def _plain(text: str) -> str:
    return one_line(text).replace("$", r"\$")


def looks(spec: LooksSpec) -> dict[str, Look]:
    """The looks of the runs of spec.groups, in order, and of models/<name> for those in spec.models.

    Colors begin anew in each group, as no panel has two of them; where a group uses them up, dashed.
    """
    found = {}
    for _, runs in spec.groups:
        colors = itertools.chain(((c, "-") for c in COLORS), itertools.cycle((c, DASHED) for c in COLORS))
        for number, run in enumerate(runs):
            color, line = ("black", "-") if run == spec.baseline else next(colors)
            found[run] = Look(spec.labels[run], color, MARKERS[number % len(MARKERS)], line)
    for number, model in enumerate(spec.models):
        how = "SFT" if model in spec.supervised else "RL"
        found[f"models/{model}"] = Look(f"{model} ({how})", GRAYS[number % len(GRAYS)], "h", DASHED)
    return found


def panels(spec: PlotFigure, count: int, rows: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` times `count` panels, as [rows, count]; below one another where the width is too small.

    Where panels of one row are stacked, they come as [rows, count] all the same.
    """
    down = stacked(spec, count)
    beside = -(-count // down)
    if down > 1:
        options.pop("sharex", None)  # panels with other axes now stand in the same column
    figure, grid = plt.subplots(rows * down, beside, squeeze=False, layout="constrained", **options)
    flat = np.array([grid[row * down : (row + 1) * down].ravel() for row in range(rows)])
    for axes in flat[:, count:].ravel():
        axes.remove()
    return figure, flat[:, :count]


def stacked(spec: PlotFigure, count: int) -> int:
    """How many of a row of `count` panels come below one another, at the figure's width."""
    return -(-count // max(1, min(count, int(spec.options.width // PANEL_WIDTH))))


def means(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over seeds. Their columns <name>_low and <name>_high are empty if there is one seed."""
    return table[table["seed"] == "mean"]


def curve(axes: Axes, rows: pd.DataFrame, x: str, y: str, look: Look, floor: float | None = None) -> None:
    """A line through the means, and a band for the interval if there is one (above `floor` on a log axis)."""
    rows = rows.sort_values(x)
    axes.plot(rows[x], rows[y], color=look.color, marker=look.marker, linestyle=look.line, zorder=3)
    low, high = rows[f"{y}_low"], rows[f"{y}_high"]
    if floor is not None:
        low = low.clip(lower=rows[y] * floor)
    if low.notna().any():
        axes.fill_between(rows[x], low, high, color=look.color, alpha=0.13, linewidth=0)


def end_of(rows: pd.DataFrame, x: str, y: str, look: Look) -> tuple[float, float, str, str]:
    """The last point of a curve, with its label and color, for `label_ends`."""
    last = rows.dropna(subset=[y]).sort_values(x).iloc[-1]
    return float(last[x]), float(last[y]), look.label, look.color


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], apart: float = 0.055, size: float = 8.5
) -> None:
    """Name each line at the right margin, level with its end, moved apart where labels would touch.

    `apart` is the least distance of two labels, as a share of the axes' height.
    """
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1] for x, y, _, _ in ends]
    order = np.argsort(heights)
    offsets = apart * np.arange(len(ends))
    # what is left of a height without the labels below it must not fall: the nearest that does not, by least squares
    bases = isotonic_regression(np.array(heights)[order] - offsets).x if ends else offsets
    top = 1.0 - apart * (len(ends) - 1)
    for height, index in zip(np.clip(bases, min(0.0, top), top) + offsets, order, strict=True):
        _, _, label, color = ends[index]
        axes.annotate(label, (1.015, height), xycoords="axes fraction", color=color, fontsize=size, va="center")


def label_panel(axes: Axes, ends: Sequence[tuple[float, float, str, str]], spec: PlotFigure, rows: int) -> None:
    """`label_ends` for one of `rows` rows of panels, whose height decides how close labels may come."""
    assert spec.options.height is not None  # figures of panels have one
    height = 0.72 * spec.options.height / rows
    label_ends(axes, ends, apart=1.25 * LABEL_SIZE / 72 / height, size=LABEL_SIZE)


def step_axis(axes: Axes, steps: Sequence[int], label: str = "optimizer steps (0: the base model)") -> None:
    """Steps on a logarithmic axis to base 2 that also shows 0."""
    steps = sorted(set(steps))
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_xlabel(label)


def nats_axis(axes: Axes) -> None:
    """A logarithmic y axis in plain numbers: at the powers of ten and, where few of them are in view, between."""

    def between(value: float, _: int) -> str:
        low, high = axes.get_ylim()
        return f"{value:g}" if high < 100 * low else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(FuncFormatter(between))
    axes.tick_params(axis="y", which="minor", labelsize=8)


def title(axes: Axes, number: int, text: str) -> None:
    """A panel's letter and what it shows, flush left."""
    axes.set_title(f"({'abcdefghijkl'[number]}) {text}", loc="left", fontsize=9)


def table_of(results: Path, name: str) -> pd.DataFrame:
    """A table of the results; columns that label rows stay text."""
    return read_csv(results / f"tables/{name}.csv", text=("seed", "layer"))
