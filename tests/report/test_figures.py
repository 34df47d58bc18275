"""One visual language: the same run looks the same everywhere, and labels do not lie on one another."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from effopd.report.figures import captions
from effopd.report.figures.style import GRAYS, LABEL_SIZE, label_ends, label_panel, looks, panels, stacked
from effopd.report.table_columns import COLUMNS
from effopd.specs.read import read_spec
from effopd.specs.reports import FigureOptions
from effopd.stages.plot_figure import DRAW
from effopd.workflow.job_specs import Plan

TINY = yaml.safe_load((Path(__file__).parents[1] / "end_to_end/tiny.yaml").read_text())
SPEC = read_spec("plot_figure", {
    "runs": [f"run{i}" for i in range(9)], "groups": [("main", [f"run{i}" for i in range(9)])], "labels": {f"run{i}": f"Run {i}" for i in range(9)}, "baseline": "run3",
    "models": ["teacher"], "options": {"width": 7.2, "height": 3.4, "dpi": 10}, "seeds": [], "figure": "", "interventions": [],
    "confidence": 0.95,
})  # fmt: skip


def test_each_run_has_a_look_of_its_own():
    found = looks(SPEC)
    assert found["run3"].color == "black"
    assert found["models/teacher"].label == "teacher (RL)"
    first_seven = [found[f"run{i}"] for i in range(8)]
    assert len({look.color for look in first_seven}) == 8
    assert len({(look.color, look.marker) for look in found.values()}) == len(found)


@pytest.mark.parametrize(("width", "height"), [(7.2, 3.4), (3.3, 5.0)])
def test_labels_of_lines_that_end_together_do_not_overlap(width, height):
    spec = replace(SPEC, options=FigureOptions(width, 10, height))
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
    figure, grid = panels(replace(SPEC, options=FigureOptions(3.3, 10, 5)), 2, rows=2)
    assert grid.shape == (2, 2)
    tops = [axes.get_position().y1 for axes in grid.ravel()]
    assert tops == sorted(tops, reverse=True)
    assert len(set(np.round(tops, 6))) == 4
    plt.close(figure)


def write(path, table):
    """A table with all of its columns: those that a test leaves out are empty."""
    table.reindex(columns=[*COLUMNS[path.stem]]).to_csv(path, index=False)


@pytest.mark.parametrize("settled", [0, 3])
def test_the_local_theory_is_drawn_even_where_no_eigenpair_converged(tmp_path, settled):
    pair = {"student": "base", "teacher": "teacher"}
    index = list(range(1, 7))
    residual = [1e-3 if i <= settled else 0.5 for i in index]
    tables = tmp_path / "tables"
    tables.mkdir()
    residuals = pd.concat(
        pd.DataFrame({**pair, "kind": kind, "index": index, "singular_value": [1 / i for i in index]})
        for kind in ("logits", "weighted")
    )
    write(tables / "local_residuals.csv", residuals)
    eigenspace = pd.concat(
        pd.DataFrame({**pair, "start": s, "index": index, "relative_residual": residual, "cumulative_share": 0.5})
        for s in ("b", "random")
    )
    write(tables / "local_eigenspace.csv", eigenspace)
    columns = ["cosine", "reverse_kl", "predicted_reverse_kl"]
    path = pd.DataFrame({"run": "run0", "seed": ["0", "mean"], "step": 1, **dict.fromkeys(columns, 0.1)})
    write(tables / "local_path.csv", path)
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
    assert set(Plan(config).figures()) == set(captions.COMPARISON) - {"ablations"}
    config["runs"]["line"]["group"] = "searches"
    assert set(Plan(config).figures()) == set(captions.COMPARISON)
    config["runs"] = {"opd": config["runs"]["opd"]}
    assert "speedups" not in Plan(config).figures(), "one run has nothing to be compared with"


def test_every_figure_can_be_drawn_and_explained():
    assert set(DRAW) == {*captions.COMPARISON, *captions.WEIGHTS}
    options = Plan(TINY).config["figures"]
    assert set(options) == set(DRAW)


def test_means_without_an_interval_have_no_band():
    from effopd.report.figures.style import Look, curve

    figure, axes = plt.subplots()
    rows = pd.DataFrame({"x": [1, 2], "y": [0.1, 0.2], "y_low": [np.nan] * 2, "y_high": [np.nan] * 2})
    curve(axes, rows, "x", "y", Look("a", "black", "o"))
    assert not axes.collections
    curve(axes, rows.assign(y_low=0.05, y_high=0.3), "x", "y", Look("a", "black", "o"))
    assert len(axes.collections) == 1
    plt.close(figure)


GROUPS = {
    "main": ["plain", "tuned", "jump"],
    "learning rate": [f"rate{i}" for i in range(9)],
    "gate size": ["gate10", "gate200"],
}
RUNS = [run for runs in GROUPS.values() for run in runs]


@pytest.fixture
def many_runs(tmp_path):
    """A results folder with tables of fourteen runs in three groups; `gate200` never reaches the target."""
    tables = tmp_path / "tables"
    tables.mkdir()
    places = [(run, seed, step) for run in RUNS for seed in (0, 1, 2) for step in (0, 1, 2, 4, 8)]
    evaluation = pd.DataFrame(places, columns=["run", "seed", "step"])
    evaluation["accuracy"] = 0.3 + 0.04 * evaluation["step"] + 0.01 * evaluation["seed"]
    evaluation["reverse_kl"] = 1 - evaluation["accuracy"]
    evaluation["seconds"] = evaluation["step"] * 2.0
    write(tables / "evaluation.csv", evaluation)
    rows = []
    for number, run in enumerate(RUNS[1:]):
        row = {"run": run, "reference": "plain", "seeds": 3, "reached": 1 if run == "gate200" else 3}
        for measure in ("step", "generated_tokens", "flops"):
            ratio = 2.0**number / 8
            bounds = (0, 2 * ratio) if run == "gate200" else (ratio / 2, ratio * 2)
            row |= dict(
                zip(
                    (f"{measure}_ratio", f"{measure}_ratio_low", f"{measure}_ratio_high"), (ratio, *bounds), strict=True
                )
            )
        rows.append(row)
    write(tables / "comparison.csv", pd.DataFrame(rows))
    trials = [
        {"run": run, "seed": seed, "step": step, "metric": "reverse_kl", "coefficient": c, "value": 0.1 * c, "selected": c == 1,
         "tie": False}
        for run in ("jump", "gate10", "rate1") for seed in (0, 1) for step in (1, 2, 3) for c in (0, 1, 2)
    ]  # fmt: skip
    write(tables / "extrapolation.csv", pd.DataFrame(trials))
    write(tables / "models.csv", pd.DataFrame({"model": ["base", "teacher"], "accuracy": [0.3, 0.9]}))
    return tmp_path


def drawn(figure, results, own_references=(), **options):
    content = {
        "runs": RUNS, "groups": list(GROUPS.items()), "labels": {run: f"Run {run}, of a long name" for run in RUNS},
        "baseline": "plain", "references": ["plain", "tuned"], "own_references": dict(own_references), "models": [], "confidence": 0.95, "seeds": [],
        "options": {"width": 7.2, "height": 4.0, "dpi": 10} | options, "figure": figure, "interventions": [],
    }  # fmt: skip
    spec = read_spec("plot_figure", content)
    made = DRAW[figure](spec, results)
    made.set_size_inches(spec.options.width, spec.options.height or made.get_figheight())
    made.draw_without_rendering()
    return made


def texts_apart(figure, texts):
    """Whether texts lie inside the figure and not on one another."""
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.y0)
    inside = all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
    return inside and all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))


@pytest.mark.parametrize("figure", ["accuracy_vs_steps", "accuracy_vs_seconds", "reverse_kl_vs_steps"])
def test_figures_of_accuracy_show_the_main_group_alone(many_runs, figure):
    made = drawn(figure, many_runs)
    labels = {text.get_text() for text in made.axes[0].texts} - {"base", "teacher"}
    assert labels == {f"Run {run}, of a long name" for run in GROUPS["main"]}
    plt.close(made)


def test_the_gates_figure_shows_runs_that_have_decisions_and_their_names_apart(many_runs):
    made = drawn("gate_vs_coefficient", many_runs)
    assert len(made.axes) == 2  # kept steps of the one main run that has any; 3 is none
    assert [text.get_text() for text in made.legends[0].texts][2:] == ["selected"]
    plt.close(made)
    table = pd.read_csv(many_runs / "tables/extrapolation.csv")
    table.assign(tie=table["step"] == 2).to_csv(many_runs / "tables/extrapolation.csv", index=False)
    made = drawn("gate_vs_coefficient", many_runs)
    assert [text.get_text() for text in made.legends[0].texts][2:] == ["selected", "a tie"]
    squares = [[len(dots.get_offsets()) for dots in axes.collections if dots.get_sizes()[0] > 50] for axes in made.axes]
    assert squares == [[0, 0], [1, 1]]  # of each seed the selected one alone
    plt.close(made)
    others = pd.concat([table[table["run"] == "jump"].assign(run=run) for run in GROUPS["main"]])
    others.to_csv(many_runs / "tables/extrapolation.csv", index=False)
    made = drawn("gate_vs_coefficient", many_runs, height=3.6)
    assert texts_apart(made, [axes.yaxis.label for axes in made.axes if axes.get_ylabel()])
    plt.close(made)
    table[:0].to_csv(many_runs / "tables/extrapolation.csv", index=False)
    assert drawn("gate_vs_coefficient", many_runs).axes[0].texts[0].get_text() == "no run extrapolates"
    plt.close("all")


def test_each_group_has_a_panel_with_what_it_is_compared_with_in_grey(many_runs):
    made = drawn("ablations", many_runs, height=None)
    assert [axes.get_title(loc="left") for axes in made.axes] == ["learning rate", "gate size"]
    for axes, runs in zip(made.axes, (GROUPS["learning rate"], GROUPS["gate size"]), strict=True):
        assert {text.get_text() for text in axes.texts} == {
            f"Run {r}, of a long name" for r in ("plain", "tuned", *runs)
        }
        looks_of = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
        assert len(looks_of) == len(axes.lines), "two runs look alike"
        assert sum(line.get_color() in GRAYS for line in axes.lines) == 2
        assert texts_apart(made, axes.texts)
    plt.close(made)


def test_what_one_run_is_compared_with_is_grey_too_where_it_is_of_another_group(many_runs):
    made = drawn("ablations", many_runs, height=None, own_references={"gate10": "jump", "rate1": "rate0"})
    rates, gates = made.axes
    assert "Run jump, of a long name" in {text.get_text() for text in gates.texts}
    assert sum(line.get_color() in GRAYS for line in gates.lines) == 3
    assert sum(line.get_color() in GRAYS for line in rates.lines) == 2
    assert len({(line.get_color(), line.get_linestyle()) for line in gates.lines}) == len(gates.lines)
    plt.close(made)


def test_the_forest_has_a_row_a_run_and_marks_bounds(many_runs):
    made = drawn("speedups", many_runs, height=None)
    names = [text.get_text() for text in made.axes[0].get_yticklabels()]
    assert names[:3] == ["main", "Run tuned, of a long name", "Run jump, of a long name"]
    assert len(names) == len(GROUPS) + len(RUNS) - 1
    assert texts_apart(made, made.axes[0].get_yticklabels())
    for axes in made.axes:
        points = [line for line in axes.lines if line.get_marker() in ("o", "<")]
        assert len(points) == len(RUNS) - 1
        assert [line.get_marker() for line in points].count("<") == 1
        hollow = [line.get_markerfacecolor() == "white" for line in points]
        assert hollow[:6] == [False, False, True, True, True, False]  # 1/8 to 4, each from its half to its double
    plt.close(made)


def test_many_labels_of_one_figure_do_not_overlap():
    figure, axes = plt.subplots(layout="constrained")
    figure.set_size_inches(7.2, 4.0)
    axes.plot([0, 1], [0, 1])
    label_ends(axes, [(1.0, 0.5 + 1e-3 * i, f"Run {i} of a dozen", "black") for i in range(12)])
    figure.draw_without_rendering()
    assert texts_apart(figure, axes.texts)
    plt.close(figure)


def test_labels_are_level_with_their_lines_where_there_is_room_and_around_them_where_not():
    figure, axes = plt.subplots()
    axes.set_ylim(0, 1)
    label_ends(axes, [(1.0, y, str(y), "black") for y in (0.9, 0.1, 0.5, 0.5, 0.99, 1.0)], apart=0.1)
    assert [text.xy[1] for text in axes.texts] == pytest.approx([0.1, 0.45, 0.55, 0.8, 0.9, 1.0])
    assert [text.get_text() for text in axes.texts] == ["0.1", "0.5", "0.5", "0.9", "0.99", "1.0"]
    plt.close(figure)
