"""The figure of the local theory: the residual's spectrum, where the gradient lies, and predicted against observed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from effopd.report.figures.style import (
    curve,
    end_of,
    label_panel,
    looks,
    means,
    nats_axis,
    panels,
    stacked,
    step_axis,
    table_of,
    title,
)
from effopd.specs.reports import PlotFigure

CONVERGED = 1e-2  # relative residual of an eigenpair that is drawn filled
RESIDUALS = {"logits": ("logits, centered", "0.45", "s"), "weighted": ("as the KL weighs them", "black", "o")}


def local_theory(spec: PlotFigure, results: Path) -> Figure:
    """Draw how well the local theory predicts each run's updates."""
    figure, grid = panels(spec, 2, rows=2)
    _residuals(grid[0, 0], table_of(results, "local_residuals"))
    _eigenspace(grid[0, 1], table_of(results, "local_eigenspace"))
    path = means(table_of(results, "local_path"))
    rows = 2 * stacked(spec, 2)
    steps = path["step"].unique().tolist()
    ends, falls = [], []
    for run, look in looks(spec).items():
        of_run = path[path["run"] == run]
        if of_run["cosine"].notna().any():
            curve(grid[1, 0], of_run, "step", "cosine", look)
            ends.append(end_of(of_run, "step", "cosine", look))
        if len(of_run):
            curve(grid[1, 1], of_run, "step", "reverse_kl", look, floor=0.25)
            falls.append(end_of(of_run, "step", "reverse_kl", look))
            grid[1, 1].plot(
                of_run["step"],
                of_run["predicted_reverse_kl"],
                color=look.color,
                linestyle=":",
                linewidth=1.2,
                zorder=2,
            )
    for axes in grid[1]:
        step_axis(axes, steps, "optimizer steps")
    grid[1, 0].set_ylim(bottom=0)
    grid[1, 0].set_ylabel("cosine")
    nats_axis(grid[1, 1])
    grid[1, 1].set_ylabel("reverse KL (nats per token)")
    title(grid[1, 0], 2, "update against the predicted one")
    title(grid[1, 1], 3, "observed, and dotted: predicted")
    label_panel(grid[1, 1], falls, spec, rows)
    if rows > 2:
        label_panel(grid[1, 0], ends, spec, rows)
    return figure


def _residuals(axes: Any, table: Any) -> None:
    table = table[(table["student"] == table["student"].iloc[0]) & (table["teacher"] == table["teacher"].iloc[0])]
    for kind, (label, color, marker) in RESIDUALS.items():
        rows = table[table["kind"] == kind]
        values = rows["singular_value"] / rows["singular_value"].iloc[0]
        shown = values > 1e-6  # below there is the direction that softmax does not see
        axes.plot(rows["index"][shown], values[shown], color=color, marker=marker, markersize=3, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("index i")
    axes.set_ylabel("σᵢ / σ₁")
    axes.legend(frameon=False, fontsize=7.5, loc="lower left")
    title(axes, 0, "residual to the teacher's logits")


def _eigenspace(axes: Any, table: Any) -> None:
    table = table[(table["student"] == table["student"].iloc[0]) & (table["teacher"] == table["teacher"].iloc[0])]
    furthest = 2
    for start, label, color, marker in (("b", "gradient b", "black", "o"), ("random", "random vector", "0.55", "s")):
        rows = table[table["start"] == start]
        settled = rows["relative_residual"].lt(CONVERGED).cumprod().astype(bool)
        if not settled.any():  # too few iterations for one eigenpair
            continue
        axes.plot(rows["index"][settled], rows["cumulative_share"][settled], color=color, marker=marker, markersize=3)
        last = rows[settled].iloc[-1]
        furthest = max(furthest, last["index"])
        axes.annotate(
            label,
            (last["index"], last["cumulative_share"]),
            xytext=(5, 0),
            textcoords="offset points",
            fontsize=8,
            color=color,
            va="center",
        )
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(0.5, 1.55 * furthest)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("k (converged eigenpairs)")
    axes.set_ylabel("share of ‖·‖²")
    title(axes, 1, "inside the top-k eigenspace of A")
