"""The tables by task and source, from evaluations small enough to check by hand, and against a loop."""

import math
import time

import numpy as np
import pandas as pd
import pytest

from effopd.artifacts.manifests import write_manifest
from effopd.evaluation.statistics import mean_interval
from effopd.specs.read import read_spec
from effopd.stages.make_task_table import make_task_table
from effopd.stages.write_report import by_source

SPEC = read_spec(
    "make_task_table",
    {
        "folder": "evaluation/tasks/{task}",
        "tasks": ["mixed", "sums"],
        "models": ["base"],
        "runs": [{"run": "opd", "student": "base", "steps": [4]}],
        "seeds": [0, 1],
        "confidence": 0.95,
    },
)
# Four problems of two sources, of which the prompts leave the first one out; two completions of each.
SOURCES, ROWS = ["long", "a", "a", "b"], [1, 2, 3]
REWARDS = {"models/base": [0, 0, 0, 0, 0, 0], "opd/seed0/4": [1, 0, 0, 0, 1, 1], "opd/seed1/4": [1, 1, 1, 0, 1, 1]}


def artifact(path, kind, **tables):
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, table in tables.items():
        files[f"{name}.parquet"] = path.with_name(f"{name}.parquet")
        table.to_parquet(files[f"{name}.parquet"])
    write_manifest(path, kind=kind, spec={}, parents={}, files=files, started=time.time())


@pytest.fixture
def table(tmp_path):
    for task in SPEC.tasks:
        data = pd.DataFrame({"problem": list("wxyz"), "answer": "1"})
        artifact(
            tmp_path / f"data/{task}/manifest.json",
            "data",
            test=data.assign(source=SOURCES) if task == "mixed" else data,
        )
        prompts = pd.DataFrame({"row": ROWS, "tokens": [[1]] * 3})
        artifact(tmp_path / f"data/{task}/prompts-base/manifest.json", "prompts", test=prompts)
        for name, rewards in REWARDS.items():
            items = pd.DataFrame({"index": [0, 0, 1, 1, 2, 2], "reward": rewards, "tokens": range(6), "finished": True})
            path = tmp_path / f"evaluation/tasks/{task}/{name}.json"
            artifact(path, "evaluation", **{f"{path.stem}.items": items})
    make_task_table(SPEC, tmp_path, tmp_path / "tasks.csv")
    return pd.read_csv(tmp_path / "tasks.csv").set_index(["task", "source", "run", "seed"])


def test_each_source_is_counted_by_itself_and_all_problems_together(table):
    row = table.loc["mixed", "all", "opd", "0"]
    assert (row["accuracy"], row["problems"], row["completions"], row["step"]) == (0.5, 3, 6, 4)
    assert row["completion_length"] == 2.5
    a, b = (table.loc["mixed", source, "opd", "0"] for source in "ab")
    assert (a["accuracy"], a["problems"], a["completions"]) == (0.25, 2, 4)
    assert (b["accuracy"], b["problems"], b["completions"]) == (1, 1, 2)
    assert "long" not in table.index.get_level_values("source"), "a problem that no model was asked"
    assert set(table.loc["sums"].index.get_level_values("source")) == {"all"}, "no source is named"


def test_means_over_seeds_have_student_intervals(table):
    row = table.loc["mixed", "all", "opd", "mean"]
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert row["accuracy_high"] == pytest.approx(2 / 3 + 12.706 / 6, abs=1e-3)
    assert row["problems"] == 3
    base = table.loc["mixed", "all", "models/base", "mean"]
    assert (base["accuracy"], base["step"]) == (0, 0)
    assert math.isnan(base["accuracy_low"]), "of one training nothing is known of the spread"


# Of the task that is trained on: two models, of which one is asked a problem less, a run of two steps and a prediction.
OWN = {
    "folder": "evaluation",
    "tasks": ["math"],
    "models": ["base", "teacher"],
    "runs": [
        {"run": "opd", "student": "base", "steps": [1, 4]},
        {"run": "line", "student": "base", "steps": [4]},
    ],
    "seeds": [0, 1, 2],
    "confidence": 0.9,
}
NAMED = ["aime", "minerva", "minerva", "aime", "minerva"]
ASKED = {"base": [0, 1, 2, 3, 4], "teacher": [1, 2, 4]}


@pytest.fixture
def by_step(tmp_path):
    """The table, and the outcomes that it was made from: by model, or run, seed and step."""
    data = pd.DataFrame({"problem": list("vwxyz"), "answer": "1", "source": NAMED})
    artifact(tmp_path / "data/math/manifest.json", "data", test=data)
    for model, rows in ASKED.items():
        prompts = pd.DataFrame({"row": rows, "tokens": [[1]] * len(rows)})
        artifact(tmp_path / f"data/math/prompts-{model}/manifest.json", "prompts", test=prompts)
    places = [("models/base", 0, 0), ("models/teacher", 0, 0)]
    places += [(about["run"], seed, step) for about in OWN["runs"] for seed in OWN["seeds"] for step in about["steps"]]
    generator, outcomes = np.random.default_rng(0), {}
    for run, seed, step in places:
        asked = len(ASKED["teacher" if run == "models/teacher" else "base"])
        items = pd.DataFrame({"index": np.repeat(range(asked), 3), "finished": True})
        items["reward"] = generator.integers(0, 2, len(items)).astype(float)
        items["tokens"] = generator.integers(1, 9, len(items))
        path = tmp_path / "evaluation" / (f"{run}.json" if step == 0 else f"{run}/seed{seed}/{step}.json")
        artifact(path, "evaluation", **{f"{path.stem}.items": items})
        outcomes[run, seed, step] = items
    make_task_table(read_spec("make_source_table", OWN), tmp_path, tmp_path / "sources.csv")
    return pd.read_csv(tmp_path / "sources.csv"), outcomes


def test_every_step_and_its_sources_are_what_a_loop_over_the_outcomes_finds(by_step):
    table, outcomes = by_step
    found = table.set_index(["run", "seed", "step", "source"])
    assert found.index.is_unique
    values = {}
    for (run, seed, step), items in outcomes.items():
        rows = ASKED["teacher" if run == "models/teacher" else "base"]
        for source in ("all", "aime", "minerva"):
            rewards = {}
            for _, item in items.iterrows():
                if source in ("all", NAMED[rows[item["index"]]]):
                    rewards.setdefault(item["index"], []).append(item["reward"])
            every = [reward for of_problem in rewards.values() for reward in of_problem]
            if not every:
                assert (run, str(seed), step, source) not in found.index
                continue
            row = found.loc[run, str(seed), step, source]
            assert row["accuracy"] == pytest.approx(sum(every) / len(every), abs=1e-6)
            assert (row["problems"], row["completions"]) == (len(rewards), len(every))
            values.setdefault((run, step, source), []).append(sum(every) / len(every))
    for place, accuracies in values.items():
        row = found.loc[place[0], "mean", place[1], place[2]]
        expected = mean_interval(accuracies, 0.9)
        assert row[["accuracy", "accuracy_low", "accuracy_high"]].tolist() == pytest.approx(
            expected, abs=1e-5, nan_ok=True
        )
    assert len(table) == 2 * (3 + 2) + (2 + 1) * 3 * (3 + 1), "no row besides"


def test_the_report_has_a_row_for_each_model_and_last_step_and_a_column_for_each_source(by_step):
    table, _ = by_step
    rows = by_source({"runs": {"opd": {"label": "Plain"}, "line": {}}}, table)
    assert [list(row) for row in rows] == [["model or run", "all", "aime", "minerva"]] * 4
    assert [row["model or run"] for row in rows] == ["base (model)", "teacher (model)", "Plain", "line"]
    assert rows[1]["aime"] == "none asked", "all of them are too long for this model"
    last = table[(table["run"] == "opd") & (table["seed"] == "mean") & (table["step"] == 4)].set_index("source")
    accuracy, low, high = last.loc["aime", ["accuracy", "accuracy_low", "accuracy_high"]] * 100
    assert rows[2]["aime"] == f"{accuracy:.1f} % ({low:.1f} to {high:.1f})"
