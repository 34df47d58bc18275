"""What all specs and their sections have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

Task = Mapping[str, Any]  # a task's section and the digest of its code, as the task's own class reads it


class Section:
    """A section of a spec, all of whose keys are known."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # a key that nothing reads is a mistake


@dataclass(frozen=True, kw_only=True)
class JobSpec(Section):
    """What decides a job's result besides its inputs."""

    content: Mapping[str, Any]  # all of it as JSON has it: part of the fingerprint of what the job makes
    code: str = ""  # digest of the stage's code and all that it imports
