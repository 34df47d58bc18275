"""One figure, drawn from tables by the function of its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from effopd.artifacts.manifests import atomic_path
from effopd.common.progress import say
from effopd.report.figures import comparison, groups, interventions, local_theory, weights
from effopd.report.figures.style import STYLE, drawable
from effopd.specs.reports import PlotFigure

DRAW: dict[str, Callable[[PlotFigure, Path], Figure]] = {
    "accuracy_vs_steps": comparison.accuracy_vs_steps,
    "accuracy_vs_seconds": comparison.accuracy_vs_seconds,
    "reverse_kl_vs_steps": comparison.reverse_kl_vs_steps,
    "speedups": groups.speedups,
    "ablations": groups.ablations,
    "gate_vs_coefficient": comparison.gate_vs_coefficient,
    "norms": weights.norms,
    "sparsity": weights.sparsity,
    "spectra": weights.spectra,
    "alignment": weights.alignment,
    "trajectory": weights.trajectory,
    "trajectory_map": weights.trajectory_map,
    "accuracy_vs_norm": interventions.accuracy_vs_norm,
    "embeddings": interventions.embeddings,
    "sliding_window": interventions.sliding_window,
    "reconstruction": interventions.reconstruction,
    "norm_scaling": interventions.norm_scaling,
    "local_theory": local_theory.local_theory,
}


def plot_figure(spec: PlotFigure, results: Path, out: Path) -> None:
    """Draw spec.figure as SVG at `out` and as PNG beside it."""
    with plt.rc_context(STYLE):
        figure = DRAW[spec.figure](drawable(spec), results)
        height = spec.options.height or figure.get_figheight()  # some know best what they need
        figure.set_size_inches(spec.options.width, height)
        for path in (out, out.with_suffix(".png")):
            kind = path.suffix[1:]
            with atomic_path(path) as temporary:
                metadata = {"Date": None} if kind == "svg" else {}
                figure.savefig(temporary, format=kind, dpi=spec.options.dpi, metadata=metadata)
    say(f"done: {spec.figure}")
