"""Other tasks in the workflow: evaluated on, cached by themselves, and never part of training or gates."""

import json
from pathlib import Path

import pandas as pd
import pytest

from effopd.results.status import status
from workflow_runs import Workflow, effopd

pytestmark = pytest.mark.slow

# One of the embedded kind, and one of files with two sources; the second test file holds a problem that is trained on.
LONGER = {"min_terms": 7, "max_terms": 8, "splits": {"test": 16}}
FILES = {
    "name": "math",
    "prompt": {"format": "plain", "template": "{problem}"},
    "splits": {"test": {"sources": [{"files": ["easy.jsonl"]}, {"files": ["hard.jsonl"]}]}},
}
TASKS = {"longer": {"task": LONGER}, "files": {"samples": 2, "task": FILES}}
TABLE = {"make_task_table": 1, "write_report": 1}
# Of each: data, prompts and evaluations of 2 models, evaluations of 3 runs with 2 seeds.
OUTCOMES = {"evaluate_model_on_task": 2, "evaluate_on_task": 6, **TABLE}
ONE = {"make_data": 1, "tokenize_prompts": 2, **OUTCOMES}
BOTH = {**{rule: 2 * count for rule, count in ONE.items()}, **TABLE}


def write_problems(path: Path, problems: list[str]) -> None:
    path.write_text("".join(json.dumps({"problem": problem, "answer": "7"}) + "\n" for problem in problems))


@pytest.fixture(scope="module")
def elsewhere(undisturbed, finished) -> Workflow:
    """The tiny experiment, finished, and then evaluated on two other tasks. Not to be changed: copy it."""

    def make(folder: Path) -> Workflow:
        workflow = undisturbed.copy(folder)
        trained = pd.read_parquet(workflow.path("data/arithmetic/train.parquet"))["problem"]
        write_problems(folder / "easy.jsonl", ["1+1=", "2+3="])
        write_problems(folder / "hard.jsonl", ["17+8=", "9+9+9=", trained[0], "4+4+4+4="])
        workflow.config["evaluation"]["tasks"] = TASKS
        assert workflow.planned() == {"write_config": 1, **BOTH}
        return workflow

    return finished("other-tasks", make)


@pytest.fixture
def copy(elsewhere, tmp_path) -> Workflow:
    return elsewhere.copy(tmp_path)


def test_models_and_last_states_are_evaluated_on_other_tasks_and_nothing_else_changes(elsewhere, undisturbed):
    before, after = undisturbed.contents(), elsewhere.contents()
    own = [name for name in after if "/tasks" in name or "data/longer" in name or "data/files" in name]
    changed = {name for name, digest in before.items() if after[name] != digest}
    assert changed == {"results/config.yaml"}
    assert {name for name in after.keys() - before.keys() if name not in own} == set()

    data = json.loads(elsewhere.path("data/files/manifest.json").read_text())["result"]
    assert data["overlaps"] == {"test": 1}
    assert "left out, overlaps: 1 of test" in (elsewhere.folder / "logs/make_data/files.log").read_text()
    assert not elsewhere.path("data/longer/train.parquet").exists()
    table = pd.read_csv(elsewhere.path("tables/tasks.csv")).set_index(["task", "source", "run", "seed"])
    runs = {"models/base", "models/teacher", "opd", "effopd", "line"}
    assert set(table.index.get_level_values("run")) == runs
    assert set(table.loc["longer"].index.get_level_values("source")) == {"all"}
    assert table.loc["files", "hard", "opd", "0"][["problems", "completions"]].tolist() == [3, 6]
    items = pd.read_parquet(elsewhere.path("evaluation/tasks/longer/effopd/seed1/4.items.parquet"))
    assert len(items) == 16
    assert "reverse_kl" not in items
    row = table.loc["longer", "all", "effopd", "1"]
    assert row["accuracy"] == pytest.approx(items["reward"].mean(), abs=1e-5)
    assert row["completion_length"] == pytest.approx(items["tokens"].mean(), rel=1e-5)
    report = elsewhere.path("report.html").read_text()
    assert "On other tasks" in report
    assert "On other tasks" not in undisturbed.path("report.html").read_text()
    assert "data/longer" not in report.split("The DAG of")[0].split("How it was made")[1], "the DAG is of the run"


def test_other_tasks_are_looked_after(elsewhere, copy):
    assert " artifacts of results are whole" in effopd(copy, "verify", "--configfile", "config/config.yaml")
    before = status(copy.path(""))["products"]
    assert before["other tasks"] == [16, 16]
    effopd(copy, "prune", "--apply")
    assert copy.planned() == {}
    items = copy.path("evaluation/tasks/files/opd/seed0/4.items.parquet")
    items.write_bytes(items.read_bytes()[:-1] + b"x")
    assert f"{items.relative_to(copy.folder)} is altered" in effopd(copy, "verify", status=2)
    copy.path("evaluation/tasks/longer/models/base.json").unlink()
    found = status(copy.path(""))["products"]
    assert found["other tasks"] == [15, 16]
    assert found["report"] == [0, 1]
    assert before["tables"][0] == before["tables"][1], "all are there"
    assert found["tables"] == [before["tables"][0] - 1, before["tables"][1]], "that of other tasks is behind"
    said = effopd(copy, "compare", str(elsewhere.path("")), "results")
    assert "B: results (unfinished: it lacks 1 of its evaluations on other tasks)" in said
    evaluated = [elsewhere.path(f"evaluation/tasks/longer/line/seed{seed}/4.json") for seed in (0, 1)]
    mean = 100 * sum(json.loads(path.read_text())["result"]["accuracy"] for path in evaluated) / 2
    assert f"accuracy on longer: {mean:.1f} % in A, {mean:.1f} % in B (B - A: 0)" in said
    copy.config["evaluation"]["tasks"] = {"files": TASKS["files"]}
    copy.config["evaluation"]["tasks"]["files"]["task"]["seed"] = 1
    assert "is not what the configuration and code would make now" in effopd(
        copy, "verify", "--configfile", str(write_config(copy)), status=2
    )


def write_config(workflow: Workflow) -> Path:
    workflow.command()
    return workflow.folder / "config/config.yaml"


CHANGES = {
    "nothing": ("{}", {}),
    "one less": ("{files: null}", {"write_config": 1, **TABLE}),
    "none": ("{files: null, longer: null}", {"write_config": 1, "write_report": 1}),
    "samples": ("{files: {samples: 1}}", {"write_config": 1, **OUTCOMES}),
    "its test split": ("{longer: {task: {splits: {test: 17}}}}", {"write_config": 1, **ONE}),
    "its prompt": (
        "{files: {task: {prompt: {template: '{problem}+'}}}}",
        {"write_config": 1, **{rule: count for rule, count in ONE.items() if rule != "make_data"}},
    ),
    "one more": ("{short: {task: {max_terms: 3, splits: {test: 9}}}}", {"write_config": 1, **ONE}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_task_reruns_itself_alone(elsewhere, tmp_path, change):
    overlay, expected = CHANGES[change]
    path = tmp_path / "overlay.yaml"
    path.write_text(f"evaluation: {{tasks: {overlay}}}")
    assert elsewhere.planned("--configfile", str(path)) == expected


def test_a_changed_source_reruns_itself_alone(copy):
    write_problems(copy.folder / "easy.jsonl", ["1+1=", "2+4="])
    assert copy.planned() == ONE
    copy.run()
    assert copy.planned() == {}


def test_a_task_that_is_all_trained_on_stops_before_anything_is_evaluated(copy):
    trained = pd.read_parquet(copy.path("data/arithmetic/validation.parquet"))["problem"]
    for name in ("easy", "hard"):
        write_problems(copy.folder / f"{name}.jsonl", trained[:2].tolist())
    before = {name: d for name, d in copy.contents().items() if "/files" not in name and "/tasks" not in name}
    output = copy.run(status=1)
    assert "error: all 2 test problems are in the data that is trained on (results/data/arithmetic)" in output
    after = copy.contents()
    assert {name: after[name] for name in before} == before
