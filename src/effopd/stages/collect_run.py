"""A run's metrics and costs in one place: one row per step, and one row per stage call."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from effopd.artifacts.manifests import atomic_path, read_manifest
from effopd.common.progress import say
from effopd.specs.collection import CollectRun

SHOWN = 12  # coefficients in the line that says what a run did


def collect_run(spec: CollectRun, run_folder: Path, out: Path) -> None:
    """Write metrics.parquet to `out` and cost.parquet beside it, from the run's states and decisions."""
    metrics, costs, jumps = [], [], []
    for step in spec.boundaries:
        state = read_manifest(run_folder / f"state/{step}/state.json", "state")
        metrics.append(pd.read_parquet(state.file("metrics.parquet")))
        costs += state.recorded["cost"]
        path = run_folder / f"extrapolation/{step}/decision.json"
        if step in spec.triggers:
            decided = read_manifest(path, "decision")
            costs += decided.recorded["cost"]
            jumps.append(f"{decided.result['coefficient']:g}")
    for table, path in ((pd.concat(metrics), out), (pd.DataFrame(costs), out.with_name("cost.parquet"))):
        table.insert(0, "run", spec.run)
        table.insert(1, "seed", spec.seed)
        with atomic_path(path) as temporary:
            table.to_parquet(temporary, index=False)
    if spec.every_step:
        jumps = [f"{coefficient:g}" for coefficient in pd.concat(metrics)["coefficient"]]
    if len(jumps) > SHOWN:
        jumps = [*jumps[: SHOWN // 2], "...", *jumps[-SHOWN // 2 :]]
    kls = pd.concat(metrics)["reverse_kl"]
    accepted = f"; accepted coefficients {' '.join(jumps)}" if jumps else ""
    say(f"done: {len(kls)} steps, reverse KL of the rollouts {kls.iloc[0]:.3f} -> {kls.iloc[-1]:.3f}{accepted}")
