"""What a task is, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one completion: a reward in [0, 1] and why."""

    reward: float
    reason: str


class Task(Protocol):
    """A source of problems with verifiable answers."""

    def make_split(self, split: str) -> pd.DataFrame:
        """The problems of a split: columns `problem` (prompt text) and `answer` (reference answer)."""

    def make_corpus(self) -> pd.DataFrame:
        """Text to pretrain on: columns `prompt` and `completion`."""

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the task's own models."""

    def verify(self, prompt: str, completion: str) -> Verdict:
        """Judge a completion, the end-of-sequence token left off."""


def build_task(section: Mapping[str, Any]) -> Task:
    """The task that a `task` section of the configuration describes."""
    from effopd.tasks.arithmetic import ArithmeticTask

    tasks = {"arithmetic": ArithmeticTask}
    return tasks[section["name"]](section)
