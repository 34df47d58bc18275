"""Measuring a model on a task: sampled completions, verified, and their exact reverse KL to the teacher."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.artifacts.cost import cost_row
from effopd.data.prompts import Prompts
from effopd.data.verification import verify_rollouts
from effopd.engines.base import RolloutEngine
from effopd.models.models import special_ids
from effopd.specs.engines import Sampling
from effopd.tasks.base import Task
from effopd.teachers.scoring import measure_reverse_kl


@dataclass
class Measurement:
    """Per-item outcomes, a row a completion: index, reward, reason, tokens, finished, reverse_kl (sum over its tokens).

    `reverse_kl` is absent if no teacher was asked; `finite` says whether all log-probs were numbers.
    """

    items: pd.DataFrame
    finite: bool
    generation_seconds: float
    scoring_seconds: float

    @property
    def accuracy(self) -> float:
        """Mean reward."""
        return float(self.items["reward"].mean())

    @property
    def reverse_kl(self) -> float:
        """Mean KL(student || teacher) per token, in nats: the average of what the loss averages."""
        # numpy's sum: pandas would skip NaN, and weights that overflowed would look perfect
        return float(self.items["reverse_kl"].to_numpy().sum() / self.items["tokens"].sum())

    @property
    def tokens(self) -> int:
        return int(self.items["tokens"].sum())

    def cost(self, stage: str, step: int) -> list[dict[str, Any]]:
        """Ledger rows of what the measurement took."""
        rows = [cost_row(f"{stage}: generate", step, self.generation_seconds, generated=self.tokens)]
        if "reverse_kl" in self.items:
            tokens = {"scored": self.tokens, "judged": self.tokens}
            rows.append(cost_row(f"{stage}: score", step, self.scoring_seconds, **tokens))
        return rows


def measure(
    engine: RolloutEngine,
    task: Task,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Prompts,
    seeds: Sequence[int],
    sampling: Sampling,
    indices: Sequence[int],
    *,
    student: PreTrainedModel | None = None,
    teacher: PreTrainedModel | None = None,
    batch_size: int,
    policy_temperature: float = 1.0,
) -> Measurement:
    """Generate a completion for each prompt, verify it and, given student and teacher, measure the reverse KL.

    That is of the student at `policy_temperature` to the teacher, whatever temperature the completions are sampled at.
    `batch_size` is the engine's. Where there are more prompts, they are asked in the order of their length, which saves
    padding (docs/benchmarks.md); the outcomes are in the order of the prompts.
    """
    started = time.perf_counter()
    order = list(range(len(prompts)))
    if len(prompts) > batch_size:
        order.sort(key=lambda row: len(prompts.tokens[row]))
    asked = prompts.select(order)
    rollouts = engine.generate(asked.tokens, [seeds[row] for row in order], sampling)
    generated = time.perf_counter()
    items = pd.DataFrame(
        {
            "index": [indices[row] for row in order],
            **verify_rollouts(task, tokenizer, asked.problems, rollouts),
            "tokens": [len(c) for c in rollouts.completions],
            "finished": rollouts.finished,
        }
    )
    if student is not None and teacher is not None:
        _, pad_id = special_ids(tokenizer)
        per_token = measure_reverse_kl(
            student, teacher, rollouts, pad_id=pad_id, batch_size=batch_size, temperature=policy_temperature
        )
        items["reverse_kl"] = [float(row.sum(dtype=np.float64)) for row in per_token]
    items = items.iloc[np.argsort(order)].reset_index(drop=True)
    finite = all(np.isfinite(row).all() for row in rollouts.logprobs)
    return Measurement(items, finite, generated - started, time.perf_counter() - generated)
