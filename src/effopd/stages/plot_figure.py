"""The figures, from the tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from effopd.runtime.artifacts import atomic_path
from effopd.runtime.progress import say
from effopd.statistics import mean_interval

# Okabe-Ito, which colour-blind readers can tell apart; the baseline is black.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442"]
MARKERS = "osD^vPX"
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


def plot_figure(spec: dict[str, Any], tables: Path, out: Path) -> None:
    """Draw spec["figure"] as SVG at `out` and as PNG beside it."""
    draw: dict[str, Callable[[dict[str, Any], Path], Figure]] = {
        "accuracy_vs_steps": _accuracy_vs_steps,
        "accuracy_vs_seconds": _accuracy_vs_seconds,
        "gate_vs_coefficient": _gate_vs_coefficient,
        "reverse_kl_vs_steps": _reverse_kl_vs_steps,
    }
    with plt.rc_context(STYLE):
        figure = draw[spec["figure"]](spec, tables)
        figure.set_size_inches(spec["options"]["width"], spec["options"]["height"])
        for path in (out, out.with_suffix(".png")):
            kind = path.suffix[1:]
            with atomic_path(path) as temporary:
                metadata = {"Date": None} if kind == "svg" else {}
                figure.savefig(temporary, format=kind, dpi=spec["options"]["dpi"], metadata=metadata)
    say(f"done: {spec['figure']}")


def _accuracy_vs_steps(spec: dict[str, Any], tables: Path) -> Figure:
    figure, axes = plt.subplots(layout="constrained")
    evaluation = pd.read_csv(tables / "evaluation.csv")
    _references(axes, tables)
    ends = _curves(axes, spec, evaluation, "step", "accuracy")
    _step_axis(axes, evaluation)
    axes.set_ylabel("accuracy on held-out problems")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _label_ends(axes, ends)
    return figure


def _accuracy_vs_seconds(spec: dict[str, Any], tables: Path) -> Figure:
    figure, axes = plt.subplots(layout="constrained")
    evaluation = pd.read_csv(tables / "evaluation.csv")
    _references(axes, tables)
    ends = _curves(axes, spec, evaluation, "seconds", "accuracy")
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of generation, scoring, updates and gates (mean over seeds)")
    axes.set_ylabel("accuracy on held-out problems")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _label_ends(axes, ends)
    return figure


def _reverse_kl_vs_steps(spec: dict[str, Any], tables: Path) -> Figure:
    figure, axes = plt.subplots(layout="constrained")
    evaluation = pd.read_csv(tables / "evaluation.csv")
    ends = _curves(axes, spec, evaluation, "step", "reverse_kl")
    _step_axis(axes, evaluation)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.set_ylabel("reverse KL to the teacher (nats per token)")
    _label_ends(axes, ends)
    return figure


def _gate_vs_coefficient(spec: dict[str, Any], tables: Path) -> Figure:
    """A row a run, a column a trigger, a line a seed; the coefficient that was selected is filled."""
    trials = pd.read_csv(tables / "extrapolation.csv")
    trials = trials[trials["value"].notna()]
    runs, steps = list(trials["run"].unique()), sorted(trials["step"].unique())
    if not runs:
        figure, axes = plt.subplots(layout="constrained")
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no run extrapolates", ha="center", va="center")
        return figure
    figure, grid = plt.subplots(len(runs), len(steps), squeeze=False, sharey="row", layout="constrained")
    for row, run in enumerate(runs):
        of_run = trials[trials["run"] == run]
        metric = {"accuracy": "accuracy", "reverse_kl": "reverse KL"}.get(of_run["metric"].iloc[0], "score")
        for column, step in enumerate(steps):
            axes = grid[row, column]
            here = of_run[of_run["step"] == step]
            for number, (_, seed) in enumerate(here.groupby("seed")):
                seed = seed.sort_values("coefficient")
                colour = COLOURS[number % len(COLOURS)]
                axes.plot(seed["coefficient"], seed["value"], color=colour, linewidth=0.9, alpha=0.8)
                face = [colour if selected else "white" for selected in seed["selected"]]
                axes.scatter(seed["coefficient"], seed["value"], s=16, c=face, edgecolors=colour, zorder=3)
            axes.axvline(0, color="0.7", linewidth=0.6, zorder=0)
            axes.tick_params(labelsize=7)
            if row == 0:
                axes.set_title(f"step {step}", fontsize=9)
            if column == 0:
                axes.set_ylabel(f"{spec['labels'][run]}\n{metric}", fontsize=8)
    seeds = sorted(trials["seed"].unique())
    handles = [
        plt.Line2D([], [], color=COLOURS[i % len(COLOURS)], marker="o", mfc="white", label=f"seed {seed}")
        for i, seed in enumerate(seeds)
    ]
    handles.append(plt.Line2D([], [], color="0.3", marker="o", linestyle="", label="selected"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=8)
    figure.supxlabel("coefficient (0: the current weights)", fontsize=9)
    return figure


def _references(axes: Axes, tables: Path) -> None:
    """Dashed lines at the accuracy of the models."""
    models = pd.read_csv(tables / "models.csv")
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


def _curves(
    axes: Axes, spec: dict[str, Any], evaluation: pd.DataFrame, x: str, y: str
) -> list[tuple[float, float, str, str]]:
    """A line a run through the means over seeds, and a band for the interval.

    Returns the end of each line with its label and colour.
    """
    ends: list[tuple[float, float, str, str]] = []
    colours = itertools.cycle(COLOURS)
    for run, group in evaluation.groupby("run", sort=False):
        by_step = group.groupby("step")
        positions = by_step[x].mean() if x != "step" else pd.Series(sorted(group["step"].unique()))
        values = [mean_interval(values.tolist(), spec["confidence"]) for _, values in by_step[y]]
        means, lows, highs = np.array(values).T
        if y == "accuracy":
            lows, highs = lows.clip(0, 1), highs.clip(0, 1)
        else:
            lows = lows.clip(min=means / 4)  # a log axis has no zero
        colour = "black" if run == spec["baseline"] else next(colours)
        marker = MARKERS[len(ends) % len(MARKERS)]
        axes.plot(positions, means, color=colour, marker=marker, zorder=3)
        axes.fill_between(positions, lows, highs, color=colour, alpha=0.13, linewidth=0)
        ends.append((float(np.asarray(positions)[-1]), float(means[-1]), spec["labels"][run], colour))
    return ends


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Name each line at the right margin, level with its end, moved apart where labels would touch."""
    apart = 0.055
    heights = [axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[1] for x, y, _, _ in ends]
    order = np.argsort(heights)
    placed = np.array(heights)[order]
    for index in range(1, len(placed)):
        placed[index] = max(placed[index], placed[index - 1] + apart)
    placed -= max(0.0, placed[-1] - 1.0)
    for height, index in zip(placed, order, strict=True):
        _, _, label, colour = ends[index]
        axes.annotate(label, (1.015, height), xycoords="axes fraction", color=colour, fontsize=8.5, va="center")


def _step_axis(axes: Axes, evaluation: pd.DataFrame) -> None:
    """Steps on a logarithmic axis to base 2 that also shows 0."""
    axes.set_xscale("symlog", base=2, linthresh=1)
    steps = sorted(evaluation["step"].unique())
    axes.xaxis.set_major_locator(FixedLocator(steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.set_xlabel("optimizer steps (0: the base model)")
