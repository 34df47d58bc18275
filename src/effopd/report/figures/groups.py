"""Figures of many runs in groups: how much faster each is, and how those of a group learn."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator, PercentFormatter

from effopd.report.figures.comparison import curves
from effopd.report.figures.style import DASHED, DOTTED, GRAYS, Look, label_ends, looks, step_axis
from effopd.report.tables import read_csv
from effopd.specs.reports import PlotFigure

MEASURES = {"step": "steps", "generated_tokens": "generated tokens", "flops": "FLOPs"}
ROW = 0.19  # inches a run
PANEL_WIDTH, PANEL_HEIGHT = 3.5, 2.5  # inches a group, with the names of its runs
NAME_SIZE = 7.0


def speedups(spec: PlotFigure, results: Path) -> Figure:
    """One row per run, by group; one panel per measure of cost: the ratio to the baseline's, with its interval."""
    table = read_csv(results / "tables/comparison.csv")
    table = table[table["reference"] == spec.baseline].set_index("run")
    groups = [(name, [run for run in runs if run in table.index]) for name, runs in spec.groups]
    groups = [(name, runs) for name, runs in groups if runs]
    styles = looks(spec)
    rows: list[tuple[str, str | None]] = []  # what stands at the left, and the run, if it is one
    for name, runs in groups:
        rows += [(name, None)] if len(groups) > 1 else []
        rows += [(styles[run].label, run) for run in runs]
    size = spec.options.width, 0.9 + ROW * max(len(rows), 6)
    figure, panels = plt.subplots(1, len(MEASURES), sharey=True, figsize=size, layout="constrained")
    for axes, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for height, (_, run) in enumerate(rows):
            if run is not None and not math.isnan(table.loc[run, f"{measure}_ratio"]):
                _ratio(axes, table.loc[run], measure, height, styles[run])
        _ratio_axis(axes, table[f"{measure}_ratio"].dropna())
        axes.set_title(title, fontsize=9, loc="left")
    names = panels[0]
    names.set_yticks(range(len(rows)), [text for text, _ in rows], fontsize=8)
    for text, (_, run) in zip(names.get_yticklabels(), rows, strict=True):
        if run is None:
            text.set_fontweight("bold")
    names.set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel(f"{spec.labels[spec.baseline]}'s cost over the run's (above 1: faster)", fontsize=9)
    return figure


def _ratio(axes: Axes, row: pd.Series, measure: str, height: float, look: Look) -> None:
    """A run's ratio; hollow where its interval holds 1, a triangle if it is an upper bound."""
    mean, low, high = (row[f"{measure}_ratio{bound}"] for bound in ("", "_low", "_high"))
    bound = row["reached"] < row["seeds"]
    shown = look.color if low > 1 or high < 1 else "white"
    if not math.isnan(low):
        line = ":" if bound else "-"
        axes.plot([max(low, mean / 1e6), high], [height, height], color=look.color, linewidth=1.2, linestyle=line)
    axes.plot([mean], [height], marker="<" if bound else "o", color=look.color, mfc=shown, markersize=4.5, zorder=3)


def _ratio_axis(axes: Axes, means: pd.Series) -> None:
    """A logarithmic axis around the ratios and 1, whatever the width of intervals."""
    axes.set_xscale("log")
    axes.set_xlim(min([1.0, *means]) / 3, max([1.0, *means]) * 3)
    axes.axvline(1, color="0.5", linewidth=0.9, zorder=0)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 3)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def ablations(spec: PlotFigure, results: Path) -> Figure:
    """Accuracy against steps, a panel for each group but the main one, with what all are compared with in gray."""
    evaluation = read_csv(results / "tables/evaluation.csv")
    _, *groups = spec.groups
    styles = looks(spec)
    for number, run in enumerate(spec.references):
        styles[run] = Look(styles[run].label, GRAYS[number], "", "-" if number == 0 else DASHED)
    columns = max(1, min(len(groups), int(spec.options.width // PANEL_WIDTH)))
    rows = -(-len(groups) // columns)
    size = spec.options.width, PANEL_HEIGHT * rows
    figure, grid = plt.subplots(rows, columns, squeeze=False, sharey=True, figsize=size, layout="constrained")
    for number, axes in enumerate(grid.ravel()):
        if number >= len(groups):
            axes.remove()
            continue
        name, runs = groups[number]
        own = dict.fromkeys(spec.own_references[run] for run in runs if run in spec.own_references)
        beside = {run: Look(styles[run].label, GRAYS[-1], "", DOTTED) for run in own if run not in runs}
        shown = evaluation[evaluation["run"].isin([*spec.references, *beside, *runs])]
        ends = curves(axes, spec, shown, "step", "accuracy", {**styles, **beside})
        step_axis(axes, shown["step"], "optimizer steps")
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(8)
        axes.set_title(name, loc="left", fontsize=9)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.tick_params(labelleft=True)
        if number % columns == 0:
            axes.set_ylabel("accuracy", fontsize=8)
        apart = 1.25 * NAME_SIZE / 72 / (0.62 * (spec.options.height or size[1]) / rows)
        label_ends(axes, ends, apart=apart, size=NAME_SIZE)
    return figure
