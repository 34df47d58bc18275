"""Training segments of a tiny experiment, trained in this process: undisturbed, or stopped before a step.

Run by test_resume.py and test_kills.py on two ranks as well: `compare` or `train`, and where.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parent))
from transformers import Qwen3ForCausalLM

from effopd.artifacts.manifests import write_manifest
from effopd.distillation import step as distillation
from effopd.models.models import load_tensors, save_model, weights_of
from effopd.specs.read import read_spec
from effopd.stages import segments
from effopd.stages.make_data import make_data
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.tasks.base import build_task
from effopd.workflow.job_specs import Plan
from tiny_models import make_model

ENDS = {"first": (0, 2), "later": (2, 4)}  # segments: after which steps they start and end
SEGMENTS = {**ENDS, "long": (2, 42)}
EVERY_STEP = {
    **{"triggers": "every_step", "search": "line", "accept_ties": False},
    "gate": {"metric": "reverse_kl", "source": "rollouts", "examples": 4},
}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # settings of `training` and `extrapolation`
    f"zero{stage}-{precision}": ({"zero_stage": stage, "precision": precision}, {})
    for stage in range(4)
    for precision in ("float32", "bfloat16")
    if stage or precision == "float32"  # which the configuration refuses
}
WAYS |= {
    "zero2-offload": ({"zero_stage": 2, "precision": "bfloat16", "offload_optimizer": True}, {}),
    "zero3-offload": ({"zero_stage": 3, "precision": "bfloat16", "offload_optimizer": True}, {}),
    "zero2-jumps": ({"zero_stage": 2, "precision": "bfloat16"}, {**EVERY_STEP, "moments": "scaled"}),
    "zero3-jumps": ({"zero_stage": 3}, {**EVERY_STEP, "moments": "reset"}),
    "lora": ({"lora": {"rank": 2}}, {}),
}
CPU = torch.device("cpu")


class Killed(BaseException):
    """Stands for the end of the process."""


def make_inputs(folder: Path) -> None:
    """Data, prompts and two random models below `folder`, of odd sizes that two ranks cannot halve."""
    plan = _plan({}, {})
    data = folder / "data/manifest.json"
    make_data(read_spec("make_data", plan.spec("make_data")), data)
    tokenizer = build_task(plan.config["task"]).make_tokenizer()
    for seed, name in enumerate(("student", "teacher")):
        config, out = make_model(seed, len(tokenizer) + 1).config, folder / name
        config.hidden_size = 33
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        out.mkdir()
        save_model(model.config, weights_of(model), tokenizer, out)
        files = {path.name: path for path in sorted(out.iterdir())}
        write_manifest(out / "manifest.json", kind="model", spec={"model": {}}, parents={}, files=files, started=0.0)
    spec = read_spec("tokenize_prompts", plan.spec("tokenize_prompts", model="student"))
    tokenize_prompts(spec, data, folder / "student/manifest.json", folder / "data/prompts/manifest.json")


def _plan(training: dict[str, Any], extrapolation: dict[str, Any]) -> Plan:
    small = {"steps": 42, "prompts_per_step": 6, "batch_size": 2, "max_new_tokens": 4, "lr": 1e-3, "student": "student"}
    return Plan(
        {
            "task": {"splits": {"train": 40, "validation": 4, "test": 4}, "corpus": {"size": 40}},
            "models": {"student": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "student"}},
            "training": small | training,
            "extrapolation": {"gate": {"examples": 4}},
            "evaluation": {"baseline": "opd"},
            "runs": {"opd": {"extrapolation": {"triggers": "none"} | extrapolation}},
        }
    )


@contextlib.contextmanager
def killed_before(step: int) -> Iterator[None]:
    """Stop training before this step; a resume point is written after every step."""
    update, seconds = distillation.update_policy, segments.RESUME_EVERY_SECONDS

    def update_or_end(*arguments: Any) -> Any:
        if arguments[4] == step:
            raise Killed
        return update(*arguments)

    distillation.update_policy, segments.RESUME_EVERY_SECONDS = update_or_end, -1.0
    try:
        yield
    finally:
        distillation.update_policy, segments.RESUME_EVERY_SECONDS = update, seconds


def train(inputs: Path, run: Path, way: str, which: str, origin: Path | None = None, stop: int = 0) -> None:
    """Train one of SEGMENTS in one of WAYS in the folder of a run, from where it starts in the run `origin`.

    Killed is raised before step `stop`.
    """
    start, end = SEGMENTS[which]
    spec = json.loads(_plan(*WAYS[way]).spec("train_segment", run="opd", seed="0", step=str(end)))
    spec |= {"start": start, "end": end}
    with killed_before(stop):
        segments.train_segment(
            read_spec("train_segment", spec),
            student=inputs / "student/manifest.json",
            teacher=inputs / "teacher/manifest.json",
            prompts=inputs / "data/prompts/manifest.json",
            state=(origin or run) / f"state/{start}/state.json" if start else inputs / "student/manifest.json",
            decision=None,
            out=run / f"state/{end}/state.json",
            run_folder=run,
            device=CPU,
        )


def train_and_resume(inputs: Path, origin: Path, run: Path, way: str, which: str) -> None:
    """Train a segment that is killed before its last step, and goes on."""
    end = ENDS[which][1]
    with contextlib.suppress(Killed):
        train(inputs, run, way, which, origin, stop=end)
    assert (run / f"state/{end}/resume.safetensors").is_file()
    train(inputs, run, way, which, origin)


def left(run: Path, which: str) -> dict[str, Any]:
    """What a segment leaves: weights, moments and metrics."""
    folder = run / f"state/{SEGMENTS[which][1]}"
    metrics = {"metrics": repr(pq.read_table(folder / "metrics.parquet").to_pydict())}
    return metrics | load_tensors(folder / "weights.safetensors") | load_tensors(folder / "optimizer.safetensors")


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is not bitwise equal, by name."""
    same = {
        name
        for name in one.keys() & other.keys()
        if (torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor) else one[name] == other[name])
    }
    return sorted((one.keys() | other.keys()) - same)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, inputs, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "train":
        way, which, origin = sys.argv[4:]
        train(inputs, folder, way, which, Path(origin))
    else:
        for way in sys.argv[4:]:
            for which in ENDS:
                train(inputs, folder / way, way, which)
                train_and_resume(inputs, folder / way, folder / f"{way}-resumed", way, which)
    dist.barrier()
    os._exit(0)
