"""One visual language: the same run looks the same everywhere, and labels do not lie on one another."""

import copy
import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from effopd.figures import captions
from effopd.figures.style import LABEL_SIZE, label_panel, looks, panels, stacked
from effopd.plan import Plan
from effopd.stages.plot_figure import DRAW

TINY = yaml.safe_load((Path(__file__).parents[1] / "workflow/tiny.yaml").read_text())
SPEC = {
    "runs": [f"run{i}" for i in range(9)], "labels": {f"run{i}": f"Run {i}" for i in range(9)}, "baseline": "run3",
    "models": ["teacher"], "options": {"width": 7.2, "height": 3.4},
}  # fmt: skip


def test_each_run_has_a_look_of_its_own():
    found = looks(SPEC)
    assert found["run3"].colour == "black"
    assert found["models/teacher"].label == "teacher (RL)"
    first_seven = [found[f"run{i}"] for i in range(8)]
    assert len({look.colour for look in first_seven}) == 8
    assert len({(look.colour, look.marker) for look in found.values()}) == len(found)


@pytest.mark.parametrize(("width", "height"), [(7.2, 3.4), (3.3, 5.0)])
def test_labels_of_lines_that_end_together_do_not_overlap(width, height):
    spec = {**SPEC, "options": {"width": width, "height": height}}
    figure, (row,) = panels(spec, 2)
    figure.set_size_inches(width, height)
    rng = np.random.default_rng(0)
    ends = []
    for number in range(6):
        end = 1 + 1e-3 * rng.random()
        row[-1].plot([0, 1], [number, end])
        ends.append((1.0, end, f"Run {number}", "black"))
    label_panel(row[-1], ends, spec, stacked(spec, 2))
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in row[-1].texts), key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes)), LABEL_SIZE
    assert all(box.x1 <= figure.bbox.x1 for box in boxes), "a label is cut off"
    plt.close(figure)


def test_narrow_figures_stack_their_panels():
    figure, grid = panels({**SPEC, "options": {"width": 3.3, "height": 5}}, 2, rows=2)
    assert grid.shape == (2, 2)
    tops = [axes.get_position().y1 for axes in grid.ravel()]
    assert tops == sorted(tops, reverse=True)
    assert len(set(np.round(tops, 6))) == 4
    plt.close(figure)


@pytest.mark.parametrize("settled", [0, 3])
def test_the_local_theory_is_drawn_even_where_no_eigenpair_converged(tmp_path, settled):
    pair = {"student": "base", "teacher": "teacher"}
    index = list(range(1, 7))
    residual = [1e-3 if i <= settled else 0.5 for i in index]
    tables = tmp_path / "tables"
    tables.mkdir()
    pd.concat(
        pd.DataFrame({**pair, "kind": kind, "index": index, "singular_value": [1 / i for i in index]})
        for kind in ("logits", "weighted")
    ).to_csv(tables / "local_residuals.csv")
    pd.concat(
        pd.DataFrame({**pair, "start": s, "index": index, "relative_residual": residual, "cumulative_share": 0.5})
        for s in ("b", "random")
    ).to_csv(tables / "local_eigenspace.csv")
    columns = ["cosine", "reverse_kl", "predicted_reverse_kl"]
    path = pd.DataFrame({"run": "run0", "seed": ["0", "mean"], "step": 1, **dict.fromkeys(columns, 0.1)})
    path.assign(**{f"{name}_{end}": np.nan for name in columns for end in ("low", "high")}).to_csv(
        tables / "local_path.csv"
    )
    figure = DRAW["local_theory"](SPEC, tmp_path)
    drawn = {text.get_text() for text in figure.axes[1].texts}
    assert ({"gradient b", "random vector"} <= drawn) == (settled > 0)
    assert figure.axes[1].get_xlim() == pytest.approx((0.5, 1.55 * max(2, settled)))
    plt.close(figure)


def test_figures_of_what_is_switched_off_are_absent():
    config = copy.deepcopy(TINY)
    everything = Plan(config).figures()
    assert "sliding_window" in everything
    assert "local_theory" not in everything, "the tiny experiment leaves it out"
    assert "trajectory_map" not in everything, "three kept states make no map"
    config["dynamics"] |= {"interventions": ["embeddings"], "local_theory": {"enabled": True}}
    chosen = set(Plan(config).figures())
    assert {"embeddings", "local_theory", "norms"} <= chosen
    assert not chosen & {"sliding_window", "reconstruction", "norm_scaling", "accuracy_vs_norm"}
    config["training"]["steps"] = 64
    assert "trajectory_map" in Plan(config).figures()
    config["dynamics"]["enabled"] = False
    assert set(Plan(config).figures()) == set(captions.COMPARISON)


def test_every_figure_can_be_drawn_and_explained():
    assert set(DRAW) == {*captions.COMPARISON, *captions.WEIGHTS}
    options = Plan(TINY).config["figures"]
    assert set(options) == set(DRAW)


def test_means_without_an_interval_have_no_band():
    from effopd.figures.style import Look, curve

    figure, axes = plt.subplots()
    rows = pd.DataFrame({"x": [1, 2], "y": [0.1, 0.2], "y_low": [np.nan] * 2, "y_high": [np.nan] * 2})
    curve(axes, rows, "x", "y", Look("a", "black", "o"))
    assert not axes.collections
    curve(axes, rows.assign(y_low=0.05, y_high=0.3), "x", "y", Look("a", "black", "o"))
    assert len(axes.collections) == 1
    plt.close(figure)
