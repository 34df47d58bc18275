"""Data, prompts and a base model of a tiny experiment, made by the workflow's stages, and models fine-tuned from it."""

from __future__ import annotations

from pathlib import Path

import torch

from effopd.specs.read import read_spec
from effopd.stages.make_data import make_data
from effopd.stages.pretrain_model import pretrain_model
from effopd.stages.sample_responses import sample_responses
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.stages.train_sft import train_sft
from effopd.workflow.job_specs import Plan

CPU = torch.device("cpu")
TASK = {"splits": {"train": 96, "validation": 16, "test": 16}, "corpus": {"size": 400}}
SMALL = {"steps": 400, "hidden_size": 32, "intermediate_size": 48, "layers": 2, "head_dim": 8}
TUNED = {"kind": "sft", "init": "base", "steps": 4, "batch_size": 6, "lr": 3e-3, "warmup_steps": 0}

PARTED = {  # what two ranks do; of five sequences, or three of the passes, one has more than the other
    "zero0": {"batch_size": 5, "micro_batch": 2},
    "zero2": {"batch_size": 5, "micro_batch": 1, "zero_stage": 2},
    "zero3": {"batch_size": 5, "micro_batch": 2, "zero_stage": 3},
    "lora": {"batch_size": 5, "lora": {"rank": 2}},
}


def plan_of(**tuned) -> Plan:
    """The tiny experiment with a student that is fine-tuned in this way."""
    models = {"base": {"kind": "pretrain", **SMALL}, "student": {**TUNED, **tuned}}
    return Plan(
        {
            "task": TASK,
            "models": models,
            "training": {"teacher": "base", "prompts_per_step": 8, "batch_size": 8},
            "runs": {"opd": {}},
        }
    )


class Experiment:
    """What fine-tuning starts from, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.data, self.model = folder / "data/manifest.json", folder / "models/base/manifest.json"
        self.prompts = folder / "data/prompts-base/manifest.json"

    def make(self) -> Experiment:
        plan = plan_of()
        make_data(read_spec("make_data", plan.spec("make_data")), self.data)
        pretrain_model(
            read_spec("pretrain_model", plan.spec("pretrain_model", model="base")), self.data, self.model, CPU
        )
        tokenize_prompts(
            read_spec("tokenize_prompts", plan.spec("tokenize_prompts", model="base")),
            self.data,
            self.model,
            self.prompts,
        )
        return self

    def sample(self, out: Path, **sampling) -> Path:
        """The manifest of samples of the base model."""
        plan = plan_of(data="samples", sampling={"from": "base", **sampling})
        (name,) = plan.samples
        spec = read_spec("sample_responses", plan.spec("sample_responses", sample=name))
        sample_responses(spec, self.prompts, self.model, out / "manifest.json", CPU)
        return out / "manifest.json"

    def train(self, out: Path, samples: Path | None = None, **tuned) -> Path:
        """The folder of a model that is fine-tuned from the base model."""
        spec = read_spec("train_sft", plan_of(**tuned).spec("train_sft", model="student"))
        train_sft(spec, self.prompts, self.model, samples, out / "manifest.json", CPU)
        return out
