"""Problems, and their prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effopd.specs.section import JobSpec, Task


@dataclass(frozen=True, kw_only=True)
class MakeData(JobSpec):
    """`make_data`."""

    task: Task


@dataclass(frozen=True, kw_only=True)
class TokenizePrompts(JobSpec):
    """`tokenize_prompts`."""

    prompt: Mapping[str, Any] | None  # of the task; none if each problem is its own prompt
