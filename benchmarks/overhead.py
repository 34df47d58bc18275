"""What the workflow costs: the colocated one against a bare loop over the same steps, and where a staged job's time goes.

    python benchmarks/overhead.py [--steps 64] [--repeats 3]

Both sides run in turn, on the embedded experiment's student, teacher and data (made first, for fewer steps: their
quality does not matter here). Prints medians, their spread, and the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
MODELS = {"base": {"kind": "pretrain", "steps": 20}, "teacher": {"kind": "grpo", "init": "base", "steps": 2}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=64, help="Optimizer steps of the colocated run (default: 64).")
    parser.add_argument("--staged-steps", type=int, default=8, help="Optimizer steps of the staged run (default: 8).")
    parser.add_argument("--repeats", type=int, default=3, help="Times each side runs (default: 3).")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)  # this script's own child process
    options = parser.parse_args()
    if options.bare:
        print(bare_loop(options.bare, options.steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.steps, options.repeats)
        staged(Path(folder), options.staged_steps)


def compare(folder: Path, steps: int, repeats: int) -> None:
    snakemake(folder, steps, "colocated", "results/models/teacher/manifest.json")
    child = [sys.executable, __file__, "--steps", str(steps), "--bare", str(folder / "results")]
    rows = []
    for _ in range(repeats):
        bare = float(subprocess.run(child, env=environment(), check=True, capture_output=True, text=True).stdout)
        subprocess.run(["rm", "-rf", str(folder / "results/runs")], check=True)
        wall = snakemake(folder, steps, "colocated", f"results/runs/opd/seed0/state/{steps}/state.json")
        recorded = [
            json.loads(path.read_text())["recorded"] for path in folder.glob("results/runs/*/*/state/*/state.json")
        ]
        jobs = sum(entry["seconds"] for entry in recorded)
        work = sum(row["seconds"] for entry in recorded for row in entry["cost"])
        rows.append({"bare": bare, "work": work, "jobs": jobs, "wall": wall, "ratio": jobs / bare})
        print(", ".join(f"{name} {value:.2f}" for name, value in rows[-1].items()), flush=True)
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    spread = [row["ratio"] for row in rows]
    segments = len(recorded)
    print(f"\n{steps} steps, medians of {repeats}:")
    print(f"  bare loop                                        {median['bare']:6.2f} s")
    print(f"  the same steps in the workflow's {segments} jobs           {median['jobs']:6.2f} s")
    print(f"    generating, scoring, updating                  {median['work']:6.2f} s")
    print(f"    loading models, writing artifacts and states   {median['jobs'] - median['work']:6.2f} s")
    print(
        f"  ratio                                            {median['ratio']:6.3f}   ({min(spread):.3f} to {max(spread):.3f})"
    )
    start = median["wall"] - median["jobs"]
    print(f"  apart from that: start of Snakemake, of the warm process and of {segments} jobs {start:.2f} s")


def staged(folder: Path, steps: int) -> None:
    """Where the seconds of a staged job go."""
    subprocess.run(["rm", "-rf", str(folder / "results/runs")], check=True)
    nothing = snakemake(folder, steps, "staged", "results/models/teacher/manifest.json")
    wall = snakemake(folder, steps, "staged", f"results/runs/opd/seed0/state/{steps}/state.json") - nothing
    recorded = [json.loads(path.read_text())["recorded"] for path in folder.glob("results/runs/*/*/*/step*.json")]
    states = [json.loads(path.read_text())["recorded"] for path in folder.glob("results/runs/*/*/state/*/state.json")]
    inside = sum(entry["seconds"] for entry in [*recorded, *states])
    boundary_costs = {(row["stage"], row["step"]): row["seconds"] for entry in states for row in entry["cost"]}
    work = sum(boundary_costs.values())
    jobs = len(recorded) + len(states)
    print(f"\nstaged, {steps} steps, {jobs} jobs, one at a time, {wall / jobs:.2f} s a job:")
    print(f"  generating, scoring, updating                    {work / jobs:6.3f} s")
    print(f"  loading models, writing artifacts                {(inside - work) / jobs:6.3f} s")
    print(f"  Snakemake, shell, start from the warm process    {(wall - inside) / jobs:6.3f} s")


def environment() -> dict[str, str]:
    from effopd.workflow.fork_server import MALLOC

    return {**os.environ, **MALLOC, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def snakemake(folder: Path, steps: int, mode: str, *targets: str, shards: int = 1, **training: int) -> float:
    """Run the workflow for some targets, a job a shard at a time, as far as there are cores. Seconds."""
    config = {
        "models": MODELS,
        "training": {"steps": steps, **training},
        "runs": {"opd": {"extrapolation": {"triggers": "none"}}},
        "execution": {"mode": mode, "shards": shards},
        "runtime": {"device": "cpu"},
    }
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile")]
    cores = str(min(shards, os.cpu_count() or 1))
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--cores", cores, "--directory", str(folder), *targets], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - started


def bare_loop(results: Path, steps: int) -> float:
    """The same steps with the same functions in one process, nothing written. Seconds, without loading."""
    import pandas as pd
    import torch

    from effopd.data.verification import encode_prompts
    from effopd.distillation.step import generate_rollouts, update_policy
    from effopd.engines.transformers_engine import TransformersEngine
    from effopd.models.models import load_model, load_tokenizer, special_ids
    from effopd.teachers.scoring import LocalTeacher
    from effopd.training.trainer import Trainer, TrainerSettings
    from effopd.workflow.job_specs import Plan, training_settings

    torch.set_num_threads(1)
    config = yaml.safe_load((results.parent / "config/config.yaml").read_text())
    training = training_settings(Plan(config).runs["opd"]["training"])
    student, teacher = (load_model(results / "models" / name, torch.device("cpu")) for name in ("base", "teacher"))
    tokenizer = load_tokenizer(results / "models/base")
    eos_id, pad_id = special_ids(tokenizer)
    engine = TransformersEngine(student, eos_id=eos_id, pad_id=pad_id, batch_size=training.batch_size)
    scorer = LocalTeacher(teacher, pad_id=pad_id, batch_size=training.batch_size)
    problems = pd.read_parquet(results / "data/arithmetic/train.parquet")["problem"].tolist()
    prompts = encode_prompts(tokenizer, problems)
    trainer = Trainer(student, TrainerSettings.of(training))
    started = time.perf_counter()
    for step in range(1, steps + 1):
        rollouts = generate_rollouts(engine, prompts, training, 0, step)
        update_policy(trainer, rollouts, scorer.score(rollouts), training, step, pad_id)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
