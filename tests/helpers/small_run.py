"""A run on disk in seconds: data, prompts, a student and a teacher of random weights, and its stages in this process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from effopd.artifacts.manifests import Manifest, read_manifest, write_manifest
from effopd.distillation.segment import Inputs
from effopd.models.models import Weights, save_model, save_tensors, weights_of
from effopd.specs.read import read_spec
from effopd.stages.evaluate_candidates import evaluate_candidates
from effopd.stages.make_data import make_data
from effopd.stages.segments import train_segment
from effopd.stages.select_candidate import select_candidate
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.tasks.base import build_task
from effopd.training.checkpoints import DECISION_WEIGHTS, save_state
from effopd.training.trainer import OptimizerState
from effopd.workflow.job_specs import Plan
from tiny_models import TASK_SECTION, make_model

CPU = torch.device("cpu")
TASK = {**TASK_SECTION, "splits": {"train": 24, "validation": 8, "test": 8}}
TRAINING = {"steps": 4, "prompts_per_step": 6, "batch_size": 4, "max_new_tokens": 6, "lr": 1e-3}
NAME = "opd"


class SmallRun:
    """One run of the workflow with one seed; `settings` are its own."""

    def __init__(self, folder: Path, teacher: Weights | None = None, **settings: Any) -> None:
        self.root = folder / "results"
        models = {"base": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "base"}}
        config = {"task": TASK, "models": models, "training": TRAINING, "seeds": [0], "runs": {NAME: settings}}
        self.plan = Plan(config)
        data = self.root / "data/arithmetic/manifest.json"
        make_data(self.spec("make_data"), data)
        self.student = self._model("base", weights_of(make_model(0)))
        self.teacher = self._model("teacher", teacher or weights_of(make_model(1)))
        self.prompts = data.parent / "prompts-base/manifest.json"
        tokenize_prompts(self.spec("tokenize_prompts", model="base"), data, self.student, self.prompts)

    def spec(self, stage: str, **wildcards: str) -> Any:
        return read_spec(stage, self.plan.spec(stage, **wildcards))

    def of_step(self, stage: str, step: int) -> Any:
        return self.spec(stage, run=NAME, seed="0", step=str(step))

    def state(self, step: int) -> Path:
        """The manifest of the weights after a step; the student's own for step 0."""
        return self.folder / f"state/{step}/state.json" if step else self.student

    def decision(self, step: int) -> Path | None:
        """That of the trigger at a step, if it was written."""
        path = self.folder / f"extrapolation/{step}/decision.json"
        return path if path.exists() else None

    @property
    def folder(self) -> Path:
        return self.root / f"runs/{NAME}/seed0"

    def open(self, step: int) -> Inputs:
        """What a job reads that goes on after a step."""
        return Inputs.open(step, **self.inputs, state=self.state(step), decision=self.decision(step))

    @property
    def inputs(self) -> dict[str, Path]:
        return {"student": self.student, "teacher": self.teacher, "prompts": self.prompts}

    def train(self, end: int) -> Manifest:
        """Train the segment that ends with a step from the kept state before it."""
        spec = self.of_step("train_segment", end)
        start = spec.start
        train_segment(
            spec,
            **self.inputs,
            state=self.state(start),
            decision=self.decision(start),
            out=self.state(end),
            run_folder=self.folder,
            device=CPU,
        )
        return read_manifest(self.state(end), "state")

    def decide(self, step: int, anchor: int) -> Manifest:
        """The decision of the trigger at a step, of candidates beyond the update since the step `anchor`."""
        common = {"state": self.state(step), "anchor": self.state(anchor), "anchor_decision": self.decision(anchor)}
        out = self.folder / f"extrapolation/{step}"
        candidates = out / "candidates.json"
        evaluate_candidates(
            self.of_step("evaluate_candidates", step), **self.inputs, **common, out=candidates, device=CPU
        )
        spec = self.of_step("select_candidate", step)
        select_candidate(spec, **common, candidates=[candidates], out=out / "decision.json")
        return read_manifest(out / "decision.json", "decision")

    def write_state(self, step: int, weights: Weights, moments: OptimizerState | None = None, **result: Any) -> None:
        """Put a state where training would have left one."""
        path = self.state(step)
        optimizer = moments or OptimizerState(step, {"exp_avg.x": torch.zeros(1)})
        write_manifest(
            path,
            kind="state",
            spec={"end": step},
            parents={},
            files=save_state(path.parent, weights, optimizer),
            result={"step": step, "optimizer_steps": optimizer.step, **result},
            started=time.time(),
        )

    def write_decision(self, step: int, coefficient: float, weights: Weights) -> None:
        """Put a decision where a trigger would have left one."""
        folder = self.folder / f"extrapolation/{step}"
        save_tensors(folder / DECISION_WEIGHTS, weights)
        write_manifest(
            folder / "decision.json",
            kind="decision",
            spec={},
            parents={"state": read_manifest(self.state(step)).fingerprint},
            files={DECISION_WEIGHTS: folder / DECISION_WEIGHTS},
            result={"coefficient": coefficient},
            started=time.time(),
        )

    def _model(self, name: str, weights: Weights) -> Path:
        folder = self.root / "models" / name
        save_model(make_model(0).config, weights, build_task(TASK).make_tokenizer(), folder)
        files = {path.name: path for path in folder.iterdir()}
        write_manifest(
            folder / "manifest.json", kind="model", spec={"name": name}, parents={}, files=files, started=time.time()
        )
        return folder / "manifest.json"


def moved(weights: Weights, seed: int, amount: float = 1e-2) -> Weights:
    """The weights, each moved by noise."""
    generator = torch.Generator().manual_seed(seed)
    return {name: w + amount * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
