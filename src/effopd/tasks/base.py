"""What a task is, whichever it is."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from effopd.common.errors import ConfigError
from effopd.common.registry import load

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Problem:
    """A problem and what its answers are judged by."""

    text: str  # what is asked, without instruction or chat template
    answer: str  # the reference: a number or formula, a letter, or tests as JSON
    difficulty: float | None = None  # where the data says: a level, a number of terms


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one completion: a reward in [0, 1] and why."""

    reward: float
    reason: str


class Task(ABC):
    """A source of problems with verifiable answers."""

    parallel: ClassVar[bool] = False  # whether `verify` waits for other processes, so that threads help

    @abstractmethod
    def make_tables(self) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """The data, and facts on how it came to be.

        A table for each of the section's splits (train, validation and test, or test alone), with columns `problem`,
        `answer` and `difficulty` (the fields of `Problem`), and in train `response` if there are worked ones; tasks
        that a model can be pretrained on add `corpus`, with columns `prompt` and `completion`.
        """

    @abstractmethod
    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Judge a completion, the end-of-sequence token left off. Works in any thread or process."""

    @abstractmethod
    def right_completion(self, problem: Problem) -> str | None:
        """A completion made from the reference answer, which the verifier must accept; None if none can be made."""

    @abstractmethod
    def wrong_completion(self, problem: Problem) -> str:
        """A completion with another answer than the reference, which the verifier must reject."""

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of models trained from scratch on the task. Raises ConfigError if it has none."""
        raise ConfigError("config: `task.name`: only models of `arithmetic` can be pretrained from scratch.")

    def verify_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """Judge completions, the i-th of the i-th problem."""
        pairs = zip(problems, completions, strict=True)
        if not self.parallel:
            return [self.verify(problem, completion) for problem, completion in pairs]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(lambda pair: self.verify(*pair), pairs))

    def self_check(self, problems: Iterable[Problem]) -> list[str]:
        """What is wrong with the verifier on these problems, a line each; empty if all is well.

        The reference answer must get the full reward; another answer and an empty completion must get none.
        """
        found = []
        for problem in problems:
            right = self.right_completion(problem)
            shown = " ".join(problem.text.split())[:80]
            if right is not None and (verdict := self.verify(problem, right)).reward != 1:
                found.append(f"{shown!r}: its own reference answer is rejected ({verdict.reason})")
            for name, wrong in (("a wrong answer", self.wrong_completion(problem)), ("an empty completion", "")):
                if (verdict := self.verify(problem, wrong)).reward != 0:
                    found.append(f"{shown!r}: {name} gets the reward {verdict.reward:g} ({verdict.reason})")
        return found


def build_task(section: Mapping[str, Any]) -> Task:
    """The task that a `task` section of the configuration (or the part that verifying needs) describes."""
    task: Task = load("tasks", section["name"])(section)
    return task
