"""The figures of `effopd estimate` in the docs. As a script it writes them: python tests/helpers/estimate_tables.py"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from effopd.common.formatting import size_text
from effopd.config.schema import merged
from effopd.workflow.estimates.experiment import Estimate, estimate
from effopd.workflow.estimates.parts import STAGES
from effopd.workflow.job_specs import Plan

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config/paper"
PINNED = {"models": {"teacher": {"revision": "a" * 40}}}  # for a row without a commit; no figure depends on it
SIZES = {  # a row of the paper's table of each size
    "1.5B": "justrl_1.5b", "4B": "qwen3_4b_grpo", "7B": "qwen2.5_7b_orz", "8B": "qwen3_8b_base_ppo",
    "14B": "qwen3_14b_grpo", "32B": "qwen2.5_32b_dapo",
}  # fmt: skip
KINDS = ("grpo", "dapo", "ppo")
BUYS: dict[str, Any] = {  # what an update's memory depends on
    "as it is": {},
    "`gradient_checkpointing: false`": {"gradient_checkpointing": False},
    "`micro_batch: 2`": {"micro_batch": 2},
    "`zero_stage: 1`": {"zero_stage": 1},
    "`zero_stage: 3`": {"zero_stage": 3},
    "`num_processes: 32`": {"num_processes": 32},
    "`num_processes: 1`": {"num_processes": 1},
    "`offload_optimizer: true`": {"offload_optimizer": True},
    "`scored_by: endpoint`": {"scored_by": "endpoint"},
    "`execution.mode: staged`": None,
}


@cache
def estimated(row: str, *overlays: str, changes: str = "{}") -> Estimate:
    """The estimate of a row with mathematics and further files, and `changes` (YAML) over them."""
    config: dict[str, Any] = {}
    for path in (ROOT / "config/config.yaml", *(PAPER / f"{name}.yaml" for name in ("math", row, *overlays))):
        config = merged(config, yaml.safe_load(path.read_text()))
    if row == "qwen2.5_7b_orz" and not any(name.startswith("teacher_") for name in overlays):
        config = merged(config, PINNED)
    return estimate(Plan(merged(config, yaml.safe_load(changes))))


def renewed_readme(text: str) -> str:
    """config/paper/README.md with the figures of its rows, and its table of teachers, as they are now."""

    def row(line: re.Match[str]) -> str:
        found = estimated(line[2])
        return f"{line[1]} {found.gpu_hours:,.0f} | {found.disk / 1e12:.2g} TB |"

    text = re.sub(r"^(\| `([\w.]+)\.yaml` \|.*\|) [\d,]+ \| [\d.]+ TB \|$", row, text, flags=re.MULTILINE)
    return _replaced(text, _teachers())


def renewed_planning(text: str) -> str:
    """docs/planning.md with its tables as they are now."""
    return _replaced(_replaced(text, _runs()), _settings())


DOCS: dict[Path, Callable[[str], str]] = {
    PAPER / "README.md": renewed_readme,
    ROOT / "docs/planning.md": renewed_planning,
}


def _runs() -> list[str]:
    """What the runs of each size take: plain OPD, EffOPD, and EffOPD after every step."""
    columns = ["model", "run", *STAGES, "together", "disk", "GPUs", "of each", "judging"]
    rows = []
    for size, row in SIZES.items():
        for part in estimated(row, "every_step").parts:
            if not part.name.startswith("model "):
                hours = [f"{part.gpu_seconds[stage] / 3600:,.1f}" for stage in STAGES]
                memory = [size_text(part.memory or 0), size_text(part.judging or 0)]
                disk = f"{part.disk / 1e12:.2f} TB"
                rows.append([size, f"`{part.name}`", *hours, f"{part.gpu_hours:,.0f}", disk, str(part.gpus), *memory])
    return _table(columns, rows)


def _settings() -> list[str]:
    """What settings leave of the memory of each GPU at an update, from the 8B row's `opd` on."""
    rows = []
    for name, training in BUYS.items():
        changes = {"execution": {"mode": "staged"}} if training is None else {"training": training}
        endpoint = {"runtime": {"endpoints": {"teacher": {"url": "http://node7:8000/v1", "model": "teacher"}}}}
        found = estimated(SIZES["8B"], changes=yaml.safe_dump({**changes, **endpoint}))
        rows.append([name, size_text(found.parts[0].memory or 0)])
    return _table(["setting", "of each GPU"], rows)


def _teachers() -> list[str]:
    """What training a teacher takes, by its kind."""
    rows = []
    for size, row in SIZES.items():
        for kind in KINDS:
            part = next(p for p in estimated(row, f"teacher_{kind}").parts if p.name == "model teacher")
            hours = [f"{part.gpu_seconds[stage] / 3600:,.0f}" for stage in ("rollouts", "scores", "updates")]
            rows.append([size, f"`teacher_{kind}.yaml`", *hours, f"{part.gpu_hours:,.0f}", size_text(part.memory or 0)])
    return _table(["teacher", "trained by", "rollouts", "scores", "updates", "GPU hours", "of each GPU"], rows)


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _replaced(text: str, table: list[str]) -> str:
    """The text with the table under that table's heading replaced."""
    head = text.index(table[0])
    end = text.index("\n\n", head)
    return text[:head] + "\n".join(table) + text[end:]


if __name__ == "__main__":
    for path, renewed in DOCS.items():
        path.write_text(renewed(path.read_text()))
