"""Peak memory of each stage's real code on a random model of a given shape, beside what the estimate says of it.

    python benchmarks/memory.py [--hidden 576 --intermediate 1536 --layers 30 --heads 9 --kv-heads 3 --head-dim 64]
        [--vocabulary 49152] [--stages opd every_step grpo sft evaluate candidates select] [--folder PATH]

The defaults are SmolLM2's shape, 135M parameters, in float32. Student and teacher are two random Llama models, whose
rollouts all have the full length; each stage runs two steps in a process of its own, with the settings that the
workflow gives its jobs, and its peak is what the kernel counted (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from effopd.workflow.estimates.memory import LIBRARIES, resident_bytes
from effopd.workflow.job_specs import Plan

STAGES = ("opd", "every_step", "grpo", "sft", "evaluate", "candidates", "select")
STEPS, PROMPT, COMPLETION = 2, 12, 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--folder", type=Path, help="Where models and results are kept; default: a temporary one.")
    options = vars(parser.parse_args())
    shape = {name: options[name] for name in SHAPE}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options["folder"] or Path(temporary)
        make_inputs(folder, shape)
        print(f"{'stage':12} {'estimate':>9} {'measured':>9} {'ratio':>6} {'seconds':>8}")
        for stage in options["stages"]:
            said = estimate_of(stage, shape) / 1e9
            found, seconds = measured(folder, shape, stage)
            print(
                f"{stage:12} {said:6.2f} GB {found / 1e9:6.2f} GB {found / 1e9 / said:6.2f} {seconds:8.1f}", flush=True
            )


SHAPE = {
    "hidden": 576,
    "intermediate": 1536,
    "layers": 30,
    "heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "vocabulary": 49152,
}


def plan_of(shape: dict[str, int]) -> Plan:
    """An experiment with every stage, on models of this shape."""
    given = {
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        **{name: shape[name] for name in ("layers", "heads", "kv_heads", "head_dim", "vocabulary")},
        "tied": True,
    }
    search = {"search": "line", "accept_ties": False, "parameters": "all"}
    gate = {"metric": "reverse_kl", "source": "rollouts", "examples": 16}
    return Plan(
        {
            "task": {"splits": {"train": 200, "validation": 40, "test": 40}, "corpus": {"size": 40}},
            "models": {
                "student": {"kind": "pretrained", "path": "./student"},
                "teacher": {
                    **{"kind": "grpo", "init": "student", "steps": STEPS, "max_new_tokens": COMPLETION},
                    **{"prompts_per_step": 6, "samples_per_prompt": 8, "micro_batch": 12},
                },
                "tuned": {"kind": "sft", "init": "student", "steps": STEPS, "batch_size": 16},
            },
            "training": {
                **{"steps": STEPS, "prompts_per_step": 16, "batch_size": 16, "max_new_tokens": COMPLETION, "lr": 1e-5},
                **{"student": "student", "teacher": "teacher"},
            },
            "evaluation": {"batch_size": 16, "samples": 1},
            "estimate": {
                "architectures": dict.fromkeys(("student", "teacher", "tuned"), given),
                "prompt_tokens": PROMPT,
            },
            "runs": {
                "opd": {"extrapolation": {"triggers": "none"}},
                "every_step": {"extrapolation": {"triggers": "every_step", **search, "gate": gate}},
                "triggered": {"extrapolation": {"triggers": [STEPS], **search, "gate": gate}},
            },
        }
    )


def estimate_of(stage: str, shape: dict[str, int]) -> float:
    """Bytes that the estimate gives a stage."""
    from effopd.models.lm_head import LOGITS_AT_ONCE

    layer = shape["hidden"] * shape["head_dim"] * 2 * (shape["heads"] + shape["kv_heads"])
    layer += 3 * shape["hidden"] * shape["intermediate"]
    parameters = shape["layers"] * layer + shape["vocabulary"] * shape["hidden"]
    sequences = {"grpo": 12}.get(stage, 16)
    positions = sequences * (PROMPT + COMPLETION)
    others = {"every_step": 2, "sft": 0, "candidates": 3}.get(stage, 1)  # copies of weights beside the student's
    if stage == "candidates":  # which remembers what the teacher said
        others += sequences * COMPLETION * shape["vocabulary"] / parameters
    if stage == "select":
        return LIBRARIES + 3 * 4 * parameters
    return resident_bytes(
        parameters=parameters,
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        layers=shape["layers"],
        vocabulary=shape["vocabulary"],
        positions=positions,
        at_once=LOGITS_AT_ONCE,
        passes=4 if stage == "grpo" else 1,
        trained=stage in ("opd", "every_step", "grpo", "sft"),
        beside=4 * others * parameters,
    )


def make_inputs(folder: Path, shape: dict[str, int]) -> None:
    """Data, prompts and two random models, in a process of its own so that it takes no memory here."""
    if not (folder / "data/prompts/manifest.json").is_file():
        subprocess.run([sys.executable, __file__, "--child", "inputs", str(folder), json.dumps(shape)], check=True)


def measured(folder: Path, shape: dict[str, int], stage: str) -> tuple[int, float]:
    """The peak of resident memory of a stage, in bytes, and the seconds that it took."""
    from effopd.workflow.fork_server import MALLOC, ONE_THREAD

    environment = {**os.environ, **MALLOC, **ONE_THREAD}
    command = [sys.executable, __file__, "--child", stage, str(folder), json.dumps(shape)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{stage} failed:\n{done.stderr[-3000:]}")
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    return peak, seconds


def child(stage: str, folder: Path, shape: dict[str, int]) -> None:
    """Do a stage in this process and print its peak."""
    import torch

    torch.set_num_threads(1)
    if stage == "inputs":
        _write_inputs(folder, shape)
        return
    started = time.monotonic()
    _run(stage, folder, plan_of(shape), torch.device("cpu"))
    print(json.dumps([1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() - started]))


def _run(stage: str, folder: Path, plan: Plan, device: Any) -> None:
    import shutil

    from effopd.specs.read import read_spec
    from effopd.stages import segments
    from effopd.stages.evaluate import evaluate
    from effopd.stages.evaluate_candidates import evaluate_candidates
    from effopd.stages.segments import train_segment
    from effopd.stages.select_candidate import select_candidate
    from effopd.stages.train_rl import train_rl
    from effopd.stages.train_sft import train_sft
    from effopd.training import model_folder

    segments.RESUME_EVERY_SECONDS = model_folder.RESUME_EVERY_SECONDS = -1.0  # a resume point after the first step
    student, teacher, prompts = (folder / name / "manifest.json" for name in ("student", "teacher", "data/prompts"))
    models = {"student": student, "teacher": teacher, "prompts": prompts}
    start, end = {"run": "opd", "seed": "0", "step": str(STEPS)}, folder / f"runs/opd/state/{STEPS}/state.json"
    triggered = {**start, "run": "triggered"}
    if stage in ("opd", "every_step"):
        run = folder / f"runs/{stage}"
        shutil.rmtree(run, ignore_errors=True)
        spec = json.loads(plan.spec("train_segment", **{**start, "run": stage})) | {"start": 0}
        out = run / f"state/{STEPS}/state.json"
        train_segment(
            read_spec("train_segment", spec),
            **models,
            state=student,
            decision=None,
            out=out,
            run_folder=run,
            device=device,
        )
    elif stage in ("grpo", "sft"):
        out = folder / f"made/{stage}/manifest.json"
        shutil.rmtree(out.parent, ignore_errors=True)
        if stage == "grpo":
            train_rl(read_spec("train_rl", plan.spec("train_rl", model="teacher")), prompts, student, out, device)
        else:
            train_sft(
                read_spec("train_sft", plan.spec("train_sft", model="tuned")), prompts, student, None, out, device
            )
    elif stage == "evaluate":
        spec = read_spec("evaluate", plan.evaluate_run_spec("opd"))
        evaluate(spec, **models, state=end, decision=None, out=folder / "evaluation.json", device=device)
    else:
        anchors = {"state": end, "anchor": student, "anchor_decision": None}
        candidates = folder / "candidates.json"
        if stage == "candidates":
            spec = read_spec("evaluate_candidates", plan.spec("evaluate_candidates", **triggered))
            evaluate_candidates(spec, **models, **anchors, out=candidates, device=device)
        else:
            spec = read_spec("select_candidate", plan.spec("select_candidate", **triggered))
            select_candidate(spec, **anchors, candidates=[candidates], out=folder / "decision/decision.json")


def _write_inputs(folder: Path, shape: dict[str, int]) -> None:
    import torch
    from tokenizers import AddedToken
    from transformers import LlamaConfig, LlamaForCausalLM

    from effopd.artifacts.manifests import write_manifest
    from effopd.models.models import save_model, weights_in
    from effopd.specs.read import read_spec
    from effopd.stages.make_data import make_data
    from effopd.stages.tokenize_prompts import tokenize_prompts
    from effopd.tasks.base import build_task

    plan = plan_of(shape)
    make_data(read_spec("make_data", plan.spec("make_data")), folder / "data/manifest.json")
    tokenizer = build_task(plan.config["task"]).make_tokenizer()
    more = shape["vocabulary"] - len(tokenizer)
    tokenizer.add_tokens([AddedToken(f"<{number}>") for number in range(more)])
    config = LlamaConfig(
        vocab_size=shape["vocabulary"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    for seed, name in enumerate(("student", "teacher")):
        torch.manual_seed(seed)
        out = folder / name
        out.mkdir(parents=True, exist_ok=True)
        save_model(config, weights_in(LlamaForCausalLM(config)), tokenizer, out)
        files = {path.name: path for path in sorted(out.iterdir())}
        spec = {"model": {"kind": "pretrained", "path": f"./{name}", "dtype": "float32"}}
        write_manifest(out / "manifest.json", kind="model", spec=spec, parents={}, files=files, started=0.0)
    spec = read_spec("tokenize_prompts", plan.spec("tokenize_prompts", model="student"))
    prompts = folder / "data/prompts/manifest.json"
    tokenize_prompts(spec, folder / "data/manifest.json", folder / "student/manifest.json", prompts)


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main()
