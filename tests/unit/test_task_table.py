"""The table of the other tasks, from evaluations small enough to check by hand."""

import math
import time

import pandas as pd
import pytest

from effopd.runtime.artifacts import write_manifest
from effopd.stages.make_task_table import make_task_table

SPEC = {
    "tasks": ["mixed", "sums"],
    "models": ["base"],
    "runs": [{"run": "opd", "student": "base", "step": 4}],
    "seeds": [0, 1],
    "confidence": 0.95,
}
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
    for task in SPEC["tasks"]:
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
