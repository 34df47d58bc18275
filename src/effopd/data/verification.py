"""Between text and tokens: encoding problems, and judging completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from effopd.data.rollouts import Rollouts
from effopd.tasks.base import Problem, Task


def encode_prompts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of the texts."""
    return list(tokenizer(list(texts))["input_ids"])


def verify_rollouts(
    task: Task, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem], rollouts: Rollouts
) -> dict[str, list[Any]]:
    """Rewards and reasons of rollouts of `problems`, the end-of-sequence token left off before judging."""
    verdicts = task.verify_all(problems, completion_texts(tokenizer, rollouts))
    return {"reward": [v.reward for v in verdicts], "reason": [v.reason for v in verdicts]}


def completion_texts(tokenizer: PreTrainedTokenizerFast, rollouts: Rollouts) -> list[str]:
    """The text of each completion, without the end-of-sequence token."""
    texts: list[str] = tokenizer.batch_decode(
        [c[:-1] if done else c for c, done in zip(rollouts.completions, rollouts.finished, strict=True)]
    )
    return texts
