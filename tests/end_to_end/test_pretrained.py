"""The workflow on models and problems that lie in local folders: nothing is trained but the student."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from effopd.models.gguf_models import write_dequantized
from effopd.models.models import save_model, weights_of
from tiny_gguf import tiny_llama, write_gguf
from tiny_models import byte_tokenizer, make_family
from workflow_runs import Workflow

pytestmark = pytest.mark.slow

COLUMNS = {"problem": "question", "answer": "final"}
CONFIG = {
    "task": {
        "name": "math",
        "prompt": {"format": "chat", "template": "{problem}"},
        "splits": {
            "train": {"sources": [{"files": ["./train.jsonl"], "columns": COLUMNS}]},
            "validation": {"share": 0.25},
            "test": {
                "sources": [
                    {"files": ["./test.jsonl"], "columns": COLUMNS},
                    {"name": "larger", "files": ["./larger.jsonl"], "columns": COLUMNS},
                ]
            },
        },
    },
    "models": {
        "base": {"kind": "pretrained", "path": "./student"},
        "teacher": {"kind": "pretrained", "path": "./judge", "dtype": "bfloat16"},
    },
    "training": {"steps": 2, "prompts_per_step": 4, "batch_size": 4, "max_new_tokens": 8, "lr": 1.0e-3},
    "extrapolation": {
        "triggers": [2],
        "coefficients": [1, 2],
        "gate": {"metric": "reverse_kl", "examples": 4, "source": "validation"},
    },
    "runs": {"effopd": {}},
    "seeds": [0],
    "evaluation": {"batch_size": 8, "baseline": "effopd"},
    "dynamics": {"enabled": False},
    "preflight": {"problems": 4, "accept": ["teacher_accuracy"]},
    "runtime": {"device": "cpu"},
}

AFTER_ANOTHER_TEACHER = {
    "fetch_model": 1, "tokenize_prompts": 1, "evaluate_model": 2, "preflight": 1, "train_segment": 2, "evaluate": 2,
    "evaluate_candidates": 1, "select_candidate": 1, "collect_run": 1, "make_tables": 1, "make_source_table": 1,
    "plot_figure": 4, "write_report": 1,
}  # all but the student, its prompts, the data and the configuration  # fmt: skip


@pytest.fixture
def workflow(tmp_path) -> Workflow:
    """Two random Qwen3 models with one tokenizer, and three files of problems."""
    for name, seed in (("student", 0), ("judge", 1)):
        model = make_family("qwen3", seed, vocabulary=258, initializer_range=0.3)
        save_model(model.config, weights_of(model), byte_tokenizer(), tmp_path / name)
    for name, terms in (("train", range(40)), ("test", range(40, 45)), ("larger", range(45, 48))):
        rows = [json.dumps({"question": f"{n}+1=?", "final": str(n + 1)}) for n in terms]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return Workflow(tmp_path, CONFIG)


def change_a_byte(path: Path) -> None:
    """The lowest bit of the last weight."""
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-4, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_local_models_and_problems_from_their_folders_to_the_report(workflow):
    output = workflow.run()
    run = workflow.path("runs/effopd/seed0")
    states = {step: json.loads((run / f"state/{step}/state.json").read_text()) for step in (1, 2)}
    assert all(state["kind"] == "state" for state in states.values()), output
    candidates = json.loads((run / "extrapolation/2/candidates.json").read_text())
    assert candidates["kind"] == "candidates"
    evaluation = pd.read_csv(workflow.path("tables/evaluation.csv"))
    assert sorted(evaluation["step"]) == [0, 1, 2]
    assert (evaluation["reverse_kl"] > 0.01).all()
    assert evaluation["reverse_kl"].nunique() == 3, "the student moves"
    sources = pd.read_csv(workflow.path("tables/sources.csv"), dtype={"seed": str})
    of_states = sources[(sources["run"] == "effopd") & (sources["seed"] == "0")]
    counts = of_states.groupby("source")["problems"].unique().to_dict()
    assert counts == {"test": [5], "larger": [3], "all": [8]}
    for step, rows in of_states.groupby("step"):
        whole = evaluation.loc[(evaluation["step"] == step) & (evaluation["run"] == "effopd"), "accuracy"].item()
        parts = rows[rows["source"] != "all"]
        assert (parts["accuracy"] * parts["problems"]).sum() / 8 == pytest.approx(whole)
    tokens = pd.read_parquet(workflow.path("data/math/prompts-base/test.parquet"))["tokens"][0]
    assert byte_tokenizer().decode(tokens) == "<user>40+1=?<assistant><no thinking>"
    assert "the same 8 held-out problems" in workflow.path("report.html").read_text()

    verify = [str(Path(sys.executable).with_name("effopd")), "verify", "--configfile", "config/config.yaml"]
    clean = subprocess.run(verify, cwd=workflow.folder, capture_output=True, text=True)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    assert workflow.planned() == {}

    change_a_byte(workflow.folder / "judge/model.safetensors")
    assert workflow.planned() == AFTER_ANOTHER_TEACHER


def test_a_teacher_in_a_gguf_file(workflow):
    """A student with its tokenizer, and a file that becomes another one."""
    file = write_gguf(workflow.folder / "judge.gguf", tiny_llama(seed=1))
    shutil.rmtree(workflow.folder / "student")
    (workflow.folder / "student").mkdir()
    write_dequantized(write_gguf(workflow.folder / "student.gguf", tiny_llama()), workflow.folder / "student")
    models = {**CONFIG["models"], "teacher": {"kind": "pretrained", "path": "./judge.gguf", "dtype": "bfloat16"}}
    workflow = Workflow(workflow.folder, {**CONFIG, "models": models})
    workflow.run()
    evaluation = pd.read_csv(workflow.path("tables/evaluation.csv"))
    assert (evaluation["reverse_kl"] > 0.01).all()
    assert evaluation["reverse_kl"].nunique() == 3, "the student moves"
    assert workflow.planned() == {}
    write_gguf(file, tiny_llama(seed=2))
    assert workflow.planned() == AFTER_ANOTHER_TEACHER
