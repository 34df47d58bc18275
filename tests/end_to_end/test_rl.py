"""Models trained by reinforcement learning in the workflow: one from another, and one as teacher."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open

from workflow_runs import Workflow

pytestmark = pytest.mark.slow


def test_models_by_ppo_and_dapo_double_as_init_and_teacher(tmp_path):
    workflow = Workflow(tmp_path)
    config = workflow.config
    small = {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 10}
    config["models"]["critic"] = {"kind": "ppo", "init": "base", "epochs": 2, **small}
    config["models"]["teacher"] = {"kind": "dapo", "init": "critic", "overlong_buffer": 4, **small}
    config["training"]["steps"] = 2
    config["runs"] = {"effopd": {}}
    config["seeds"] = [0]
    config["evaluation"]["baseline"] = "effopd"
    config["dynamics"] = {"enabled": False}
    workflow.run()
    taught = json.loads(workflow.path("models/teacher/manifest.json").read_text())
    critic = json.loads(workflow.path("models/critic/manifest.json").read_text())
    assert taught["parents"]["init"] == critic["fingerprint"]
    for model in ("critic", "teacher"):
        for name in ("model.safetensors", "checkpoints/step2.safetensors"):
            with safe_open(workflow.path(f"models/{model}/{name}"), framework="pt") as file:
                assert not any("value_head" in key for key in file.keys()), name  # noqa: SIM118 - it is no mapping
    learnt = pd.read_parquet(workflow.path("models/critic/training.parquet"))
    assert {"value_loss", "explained_variance", "clip_share", "kl", "entropy", "generated_tokens"} <= set(learnt)
    learnt = pd.read_parquet(workflow.path("models/teacher/training.parquet"))
    assert learnt["trained_groups"].between(1, 4).all()
    assert (learnt["draws"] <= 3).all()
    models = pd.read_csv(workflow.path("tables/models.csv"))
    assert set(models["model"]) == {"base", "teacher", "critic"}
    scores = pd.read_csv(workflow.path("tables/evaluation.csv"))
    assert (scores["reverse_kl"] > 0).all()
    verify = [str(Path(sys.executable).with_name("effopd")), "verify"]
    clean = subprocess.run(verify, cwd=workflow.folder, capture_output=True, text=True)
    assert clean.returncode == 0, clean.stdout + clean.stderr
    assert workflow.planned() == {}
