"""A finished results folder in about a second: real manifests, specs and fingerprints of a small plan, tiny weights.

Nothing is trained: states hold a random model's weights, and evaluations and decisions hold made-up numbers.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from effopd.artifacts.cost import cost_row
from effopd.artifacts.manifests import Manifest, write_manifest, write_text
from effopd.evaluation.sample_files import SUFFIX, Sample, write_samples
from effopd.models.models import save_model, save_tensors
from effopd.specs.read import read_spec
from effopd.stages.make_data import make_data
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.training.checkpoints import save_state
from effopd.training.trainer import OptimizerState
from effopd.workflow.job_specs import Plan
from tiny_models import byte_tokenizer, make_model

CONFIG: dict[str, Any] = {
    "task": {"splits": {"train": 8, "validation": 4, "test": 6}, "corpus": {"size": 8}},
    "models": {"base": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "base"}},
    "training": {"steps": 2, "prompts_per_step": 2, "batch_size": 2, "checkpoint_steps": [1]},
    "extrapolation": {"gate": {"examples": 4}},
    "seeds": [0],
    "evaluation": {"baseline": "effopd"},
    "dynamics": {"interventions": [], "local_theory": {"enabled": False}},
    "runs": {"effopd": {}},
    "runtime": {"device": "cpu"},
}


class SmallResults:
    """The folder that is being made: each method writes one artifact, whose spec is what the plan asks for."""

    def __init__(self, results: Path, config: dict[str, Any] = CONFIG) -> None:
        self.results, self.config, self.plan = results, config, Plan(config)

    def make(self) -> Plan:
        write_text(self.results / "config.yaml", yaml.safe_dump(self.config))  # without the defaults: quicker to read
        data = self.results / "data/arithmetic/manifest.json"
        make_data(read_spec("make_data", self.plan.spec("make_data")), data, ())
        self.data = {"data": json.loads(data.read_text())["fingerprint"]}
        self.models: dict[str, Manifest] = {}
        for seed, name in enumerate(("base", "teacher")):
            self.models[name] = self.model(name, seed)
        for run in self.plan.runs:
            point = self.models["base"].fingerprint
            for step in self.plan.boundaries(run):
                point = self.point(run, step, point)
        return self.plan

    def write(self, path: str, kind: str, spec: str, parents: dict[str, str], **parts: Any) -> Manifest:
        place = self.results / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return write_manifest(
            place, kind=kind, spec=json.loads(spec), parents=parents, started=time.time() - 1, **parts
        )

    def model(self, name: str, seed: int) -> Manifest:
        folder, model = self.results / f"models/{name}", make_model(seed, vocabulary=258)
        save_model(model.config, dict(model.named_parameters()), byte_tokenizer(), folder)
        files = {path.name: path for path in sorted(folder.iterdir())}
        checkpoint = folder / "checkpoints/step3.safetensors"
        save_tensors(checkpoint, {"w": torch.ones(2)})
        files[f"checkpoints/{checkpoint.name}"] = checkpoint
        spec, parents = self.plan.spec(self.plan.model_stage(name), model=name), dict(self.data)
        if name == "teacher":
            parents["init"] = self.models["base"].fingerprint
        result = {"steps": 4, "parameters": 100, "last_step": {}}
        found = self.write(f"models/{name}/manifest.json", "model", spec, parents, files=files, result=result)
        prompts = self.results / f"data/arithmetic/prompts-{name}/manifest.json"
        spec = self.plan.spec("tokenize_prompts", model=name)
        tokenize_prompts(
            read_spec("tokenize_prompts", spec), self.results / "data/arithmetic/manifest.json", found.path, prompts
        )
        self.evaluation(f"models/{name}", self.plan.evaluate_model_spec(), {"state": found.fingerprint}, 0)
        return found

    def evaluation(self, name: str, spec: str, parents: dict[str, str], step: int) -> None:
        items = self.results / f"evaluation/{name}.items.parquet"
        items.parent.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame({"index": range(6), "reward": 0.5, "reverse_kl": 0.1, "tokens": 3, "finished": True})
        table.to_parquet(items, index=False)
        result = {"step": step, "accuracy": 0.5, "reverse_kl": 0.1, "completions": 6, "completion_length": 3.0,
                  "finished": 1.0}  # fmt: skip
        cost = [cost_row("evaluation", step, 0.5, generated=18)]
        samples = self.results / f"evaluation/{name}{SUFFIX}"
        write_samples(samples, [self.sample(name, row) for row in (1, 4)])
        files = {items.name: items, samples.name: samples}
        self.write(f"evaluation/{name}.json", "evaluation", spec, parents, files=files, result=result, cost=cost)

    def sample(self, name: str, row: int) -> Sample:
        """What the evaluation of this name kept of the problem in this row: one completion right, one wrong."""
        answer = str(row if row == 1 else row - 1)
        return Sample(row, f"{row}+0=", str(row), f"<bos>{row}+0=", answer, float(row == 1), f"it is {answer}", 2, True)

    def point(self, run: str, step: int, before: str) -> str:
        """A state with what leads to it and follows from it. Returns the fingerprint that the next one starts from."""
        seed, own = 0, f"runs/{run}/seed0"
        where = {"run": run, "seed": seed, "step": step}
        taught = {"student": self.models["base"].fingerprint, "teacher": self.models["teacher"].fingerprint}
        for kind in ("rollouts", "scores"):
            file = self.results / f"{own}/{kind}/step{step}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x" * 100)
            spec = self.plan.spec("update_policy", **where)
            parents = {"state": before, **taught}
            self.write(f"{own}/{kind}/step{step}.json", kind, spec, parents, files={file.name: file})
        folder = self.results / f"{own}/state/{step}"
        weights = dict(make_model(step, vocabulary=258).named_parameters())
        moments = {f"{moment}.w": torch.zeros(2) for moment in ("exp_avg", "exp_avg_sq")}
        folder.mkdir(parents=True)
        files = save_state(folder, {n: w.detach() for n, w in weights.items()}, OptimizerState(step, moments))
        files["metrics.parquet"] = folder / "metrics.parquet"
        pd.DataFrame({"step": [step], "reverse_kl": [0.1]}).to_parquet(files["metrics.parquet"], index=False)
        state = self.write(
            f"{own}/state/{step}/state.json", "state", self.plan.spec("train_segment", **where),
            {"decision" if self.plan.previous_boundary(run, step) in self.plan.triggers(run) else "state": before, **taught}, files=files,
            result={"step": step, "reverse_kl": 0.1, "optimizer_steps": step},
            cost=[cost_row("update policy", step, 0.5, trained=9)],
        )  # fmt: skip
        parents, fingerprint = {"state": state.fingerprint}, state.fingerprint
        if step in self.plan.triggers(run):
            fingerprint = parents["decision"] = self.decision(own, where, state)
        self.evaluation(f"{run}/seed0/{step}", self.plan.evaluate_run_spec(run), parents, step)
        return fingerprint

    def decision(self, own: str, where: dict[str, Any], state: Manifest) -> str:
        step, parents = where["step"], {"state": state.fingerprint}
        trial = {"coefficient": 2.0, "value": 0.5, "per_item": [0.0, 1.0]}
        norm = {"moving": 1.0}
        candidates = self.write(
            f"{own}/extrapolation/{step}/candidates.json", "candidates", self.plan.spec("evaluate_candidates", **where),
            parents, result={"step": step, "update_norm": norm, "values": [{**trial, "coefficient": 0.0}, trial]},
        )  # fmt: skip
        result = {"step": step, "coefficient": 0.0, "reason": "none", "accept_ties": True, "metric": "accuracy",
                  "current": {**trial, "coefficient": 0.0}, "trials": [{**trial, "accepted": False}],
                  "update_norm": norm}  # fmt: skip
        spec = self.plan.spec("select_candidate", **where)
        parents["candidates"] = candidates.fingerprint
        cost = [cost_row("gate: generate", step, 0.25, generated=18)]
        path = f"{own}/extrapolation/{step}/decision.json"
        return self.write(path, "decision", spec, parents, result=result, cost=cost).fingerprint
