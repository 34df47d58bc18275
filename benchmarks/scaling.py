"""Strong scaling of staged rollouts: one step's rollouts and scores in one shard, and in several that share them.

    python benchmarks/scaling.py [--prompts 4096] [--repeats 5]

The same rollouts are generated and scored in 1, 2, 4 and 8 shards, in turn, each shard a job of the staged workflow, as
many at a time as there are cores, with the embedded experiment's student, teacher and data (made first, for fewer steps:
their quality does not matter here). Times are from the start of the first job to the end of the last, by the artifacts'
own records; the start of Snakemake and of its warm process is apart. CPU seconds, which other processes disturb less, are
those of all jobs, less a run without any. Prints medians and their spread, the efficiency of two processes, and the
exponent of CPU seconds ~ shards^b.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from overhead import snakemake
from scipy.stats import linregress

SHARDS = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4096, help="Rollouts of the step (default: 4096).")
    parser.add_argument("--repeats", type=int, default=5, help="Times each side runs (default: 5).")
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), options.prompts, options.repeats)
    print(f"\n{options.prompts} rollouts of one step, medians of {options.repeats} (lowest to highest):")
    for name in ("span", "cpu"):
        for count in SHARDS:
            print(
                f"  {name}, {count} shard{'s' if count > 1 else ' '}  {summary([row[count][name] for row in rows])} s"
            )
    speedups = [row[1]["span"] / row[2]["span"] for row in rows]
    print(f"  speed-up with 2 shards  {summary(speedups)}, efficiency {statistics.median(speedups) / 2:.2f}")
    cpu = {count: statistics.median([row[count]["cpu"] for row in rows]) for count in SHARDS}
    for count in SHARDS[1:]:
        more = [row[count]["cpu"] / row[1]["cpu"] for row in rows]
        print(f"  CPU seconds of {count} over those of 1  {summary(more)}")
    print(f"  exponent of CPU seconds in shards  {linregress(np.log(SHARDS), np.log(list(cpu.values()))).slope:.2f}")


def compare(folder: Path, prompts: int, repeats: int) -> list[dict[int, dict[str, float]]]:
    """For each repeat and number of shards, seconds from first start to last end, and CPU seconds of all jobs."""
    once(folder, prompts, 1)  # makes data, models and checks too
    before = cpu_seconds()
    snakemake(folder, 1, "staged", "results/models/teacher/manifest.json")
    start, rows = cpu_seconds() - before, []
    for _ in range(repeats):
        rows.append({count: once(folder, prompts, count, start) for count in SHARDS})
        print(
            "; ".join(f"{n}: span {row['span']:.2f}, CPU {row['cpu']:.2f}" for n, row in rows[-1].items()), flush=True
        )
    return rows


def once(folder: Path, prompts: int, shards: int, start: float = 0) -> dict[str, float]:
    """One step in so many shards; `start` are the CPU seconds of a run without any job."""
    subprocess.run(["rm", "-rf", str(folder / "results/runs")], check=True)
    parts = [f".shard{index}of{shards}" for index in range(shards)] if shards > 1 else [""]
    scores = [f"results/runs/opd/seed0/scores/step1{part}.json" for part in parts]
    before = cpu_seconds()
    snakemake(folder, 1, "staged", *scores, shards=shards, prompts_per_step=prompts)
    cpu = cpu_seconds() - before - start
    begun, ended = [], []
    for path in folder.glob("results/runs/opd/seed0/*/step1*.json"):
        recorded = json.loads(path.read_text())["recorded"]
        ended.append(path.stat().st_mtime)
        begun.append(ended[-1] - recorded["seconds"])
    return {"span": max(ended) - min(begun), "cpu": cpu}


def cpu_seconds() -> float:
    """Of the processes that this one has started and waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
