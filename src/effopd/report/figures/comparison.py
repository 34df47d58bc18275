"""Figures of the comparison: how fast runs learn, at what cost, and what their gates saw."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from effopd.evaluation.statistics import mean_interval
from effopd.report.figures.style import COLORS, Look, label_ends, looks, nats_axis, step_axis
from effopd.report.tables import read_csv
from effopd.specs.reports import PlotFigure


def accuracy_vs_steps(spec: PlotFigure, results: Path) -> Figure:
    """Draw accuracy on held-out problems against optimizer steps, one curve per run."""
    figure, axes = plt.subplots(layout="constrained")
    evaluation = _of_main(spec, read_csv(results / "tables/evaluation.csv"))
    _references(axes, results)
    ends = curves(axes, spec, evaluation, "step", "accuracy", looks(spec))
    step_axis(axes, evaluation["step"])
    axes.set_ylabel("accuracy on held-out problems")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    label_ends(axes, ends)
    return figure


def accuracy_vs_seconds(spec: PlotFigure, results: Path) -> Figure:
    """Draw accuracy on held-out problems against seconds of work, one curve per run."""
    figure, axes = plt.subplots(layout="constrained")
    evaluation = _of_main(spec, read_csv(results / "tables/evaluation.csv"))
    _references(axes, results)
    ends = curves(axes, spec, evaluation, "seconds", "accuracy", looks(spec))
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of generation, scoring, updates and gates (mean over seeds)")
    axes.set_ylabel("accuracy on held-out problems")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    label_ends(axes, ends)
    return figure


def reverse_kl_vs_steps(spec: PlotFigure, results: Path) -> Figure:
    """Draw the reverse KL to the teacher against optimizer steps, one curve per run."""
    figure, axes = plt.subplots(layout="constrained")
    evaluation = _of_main(spec, read_csv(results / "tables/evaluation.csv"))
    ends = curves(axes, spec, evaluation, "step", "reverse_kl", looks(spec))
    step_axis(axes, evaluation["step"])
    nats_axis(axes)
    axes.set_ylabel("reverse KL to the teacher (nats per token)")
    label_ends(axes, ends)
    return figure


def gate_vs_coefficient(spec: PlotFigure, results: Path) -> Figure:
    """One row per run, one column per kept step, one line per seed; the coefficient that was selected is filled."""
    trials = _of_main(spec, read_csv(results / "tables/extrapolation.csv"))
    kept = read_csv(results / "tables/evaluation.csv")["step"]
    trials = trials[trials["value"].notna() & trials["step"].isin(kept)]  # not all of those that jump after every step
    runs, steps = list(trials["run"].unique()), sorted(trials["step"].unique())
    if not runs:
        figure, axes = plt.subplots(layout="constrained")
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no run extrapolates", ha="center", va="center")
        return figure
    figure, grid = plt.subplots(len(runs), len(steps), squeeze=False, sharey="row", layout="constrained")
    assert spec.options.height is not None
    room = int(0.7 * spec.options.height / len(runs) * 72 / (0.6 * 8))  # letters of size 8 beside a row
    for row, run in enumerate(runs):
        of_run = trials[trials["run"] == run]
        metric = {"accuracy": "accuracy", "reverse_kl": "reverse KL"}.get(of_run["metric"].iloc[0], "score")
        for column, step in enumerate(steps):
            axes = grid[row, column]
            here = of_run[of_run["step"] == step]
            for number, (_, seed) in enumerate(here.groupby("seed")):
                seed = seed.sort_values("coefficient")
                color = COLORS[number % len(COLORS)]
                axes.plot(seed["coefficient"], seed["value"], color=color, linewidth=0.9, alpha=0.8)
                face = [color if selected else "white" for selected in seed["selected"]]
                axes.scatter(seed["coefficient"], seed["value"], s=16, c=face, edgecolors=color, zorder=3)
                tied = seed[seed["selected"] & seed["tie"]]
                axes.scatter(tied["coefficient"], tied["value"], s=56, marker="s", c="none", edgecolors=color)
            axes.axvline(0, color="0.7", linewidth=0.6, zorder=0)
            axes.tick_params(labelsize=7)
            if row == 0:
                axes.set_title(f"step {step}", fontsize=9)
            if column == 0:
                axes.set_ylabel(f"{textwrap.fill(spec.labels[run], room)}\n{metric}", fontsize=8)
    seeds = sorted(trials["seed"].unique())
    handles = [
        plt.Line2D([], [], color=COLORS[i % len(COLORS)], marker="o", mfc="white", label=f"seed {seed}")
        for i, seed in enumerate(seeds)
    ]
    handles.append(plt.Line2D([], [], color="0.3", marker="o", linestyle="", label="selected"))
    if (trials["selected"] & trials["tie"]).any():
        handles.append(plt.Line2D([], [], color="0.3", marker="s", mfc="none", linestyle="", label="a tie"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=8)
    figure.supxlabel("coefficient (0: the current weights)", fontsize=9)
    return figure


def _of_main(spec: PlotFigure, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main group, and of the runs that all are compared with."""
    (_, main), *_ = spec.groups
    return table[table["run"].isin([*main, *spec.references])]


def _references(axes: Axes, results: Path) -> None:
    """Dashed lines at the accuracy of the models."""
    models = read_csv(results / "tables/models.csv")
    for _, model in models.iterrows():
        axes.axhline(model["accuracy"], color="0.55", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            model["model"],
            (0.995, model["accuracy"]),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="0.4",
        )


def curves(
    axes: Axes, spec: PlotFigure, evaluation: pd.DataFrame, x: str, y: str, styles: Mapping[str, Look]
) -> list[tuple[float, float, str, str]]:
    """One line per run through the means over seeds, and a band for the interval.

    Returns the end of each line with its label and color.
    """
    ends: list[tuple[float, float, str, str]] = []
    for run, group in evaluation.groupby("run", sort=False):
        by_step = group.groupby("step")
        positions = by_step[x].mean() if x != "step" else pd.Series(sorted(group["step"].unique()))
        values = [mean_interval(values.tolist(), spec.confidence) for _, values in by_step[y]]
        means, lows, highs = np.array(values).T
        if y == "accuracy":
            lows, highs = lows.clip(0, 1), highs.clip(0, 1)
        else:
            lows = lows.clip(min=means / 4)  # a log axis has no zero
        look = styles[run]
        axes.plot(positions, means, color=look.color, marker=look.marker, linestyle=look.line, zorder=3)
        axes.fill_between(positions, lows, highs, color=look.color, alpha=0.13, linewidth=0)
        ends.append((float(np.asarray(positions)[-1]), float(means[-1]), look.label, look.color))
    return ends
