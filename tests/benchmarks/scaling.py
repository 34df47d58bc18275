"""Strong scaling of staged rollouts: one step's rollouts and scores by one process, and by two that share them.

    python tests/benchmarks/scaling.py [--prompts 4096] [--repeats 5]

The same rollouts are generated and scored in one shard and in two, in turn, each shard a job of the staged workflow on a
core of its own, with the embedded experiment's student, teacher and data (made first, for fewer steps: their quality
does not matter here). Times are from the start of the first job to the end of the last, by the artifacts' own records;
the start of Snakemake and of its warm process is apart. Prints medians, their spread and the efficiency.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from overhead import snakemake

PROCESSES = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=4096, help="Rollouts of the step (default: 4096).")
    parser.add_argument("--repeats", type=int, default=5, help="Times each side runs (default: 5).")
    options = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder), options.prompts, options.repeats)
    print(f"\n{options.prompts} rollouts of one step, medians of {options.repeats} (lowest to highest):")
    for name in ("span", "work"):
        for count in PROCESSES:
            print(
                f"  {name}, {count} process{'es' if count > 1 else '  '}  {summary([row[count][name] for row in rows])} s"
            )
    speedups = [row[1]["span"] / row[2]["span"] for row in rows]
    more = [row[2]["work"] / row[1]["work"] for row in rows]
    print(f"  speed-up with 2 processes   {summary(speedups)}, efficiency {statistics.median(speedups) / 2:.2f}")
    print(f"  work of 2 over work of 1    {summary(more)}")


def compare(folder: Path, prompts: int, repeats: int) -> list[dict[int, dict[str, float]]]:
    """For each repeat and number of processes, the seconds from first start to last end, and of work in all."""
    snakemake(folder, 1, "staged", "results/models/teacher/manifest.json")
    rows = []
    for _ in range(repeats):
        rows.append({count: once(folder, prompts, count) for count in PROCESSES})
        print(
            "; ".join(f"{n}: span {row['span']:.2f}, work {row['work']:.2f}" for n, row in rows[-1].items()), flush=True
        )
    return rows


def once(folder: Path, prompts: int, processes: int) -> dict[str, float]:
    subprocess.run(["rm", "-rf", str(folder / "results/runs")], check=True)
    parts = [f".shard{index}of{processes}" for index in range(processes)] if processes > 1 else [""]
    scores = [f"results/runs/opd/seed0/scores/step1{part}.json" for part in parts]
    snakemake(folder, 1, "staged", *scores, shards=processes, prompts_per_step=prompts)
    begun, ended, work = [], [], 0.0
    for path in folder.glob("results/runs/opd/seed0/*/step1*.json"):
        recorded = json.loads(path.read_text())["recorded"]
        ended.append(path.stat().st_mtime)
        begun.append(ended[-1] - recorded["seconds"])
        work += recorded["seconds"]
    return {"span": max(ended) - min(begun), "work": work}


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
