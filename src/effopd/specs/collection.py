"""What a run left, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effopd.specs.section import JobSpec


@dataclass(frozen=True, kw_only=True)
class CollectRun(JobSpec):
    """`collect_run`."""

    run: str
    seed: int
    boundaries: Sequence[int]
    triggers: Sequence[int]
    every_step: bool
