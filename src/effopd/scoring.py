"""Scoring: the logits of a model at every completion token, and the teacher's log-probabilities of the rollouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from effopd.losses import reverse_kl, token_logprobs
from effopd.models import save_tensors
from effopd.rollouts import PaddedBatch, Rollouts


@dataclass
class Scores:
    """The teacher's log-probability of every completion token."""

    logprobs: list[np.ndarray]  # N float32 arrays, as long as the completions

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def tokens(self) -> int:
        return sum(len(row) for row in self.logprobs)

    def select(self, rows: range) -> Scores:
        return Scores([self.logprobs[i] for i in rows])

    @staticmethod
    def concatenate(parts: Sequence[Scores]) -> Scores:
        return Scores([row for part in parts for row in part.logprobs])

    def write(self, path: Path) -> None:
        """Write safetensors: `logprobs` float32 [tokens] and `lengths` int64 [N]."""
        lengths = torch.tensor([len(row) for row in self.logprobs])
        save_tensors(path, {"logprobs": torch.from_numpy(np.concatenate(self.logprobs)), "lengths": lengths})

    @staticmethod
    def read(path: Path) -> Scores:
        """The scores of a file. Raises OSError or SafetensorError where it is damaged."""
        with safe_open(path, framework="np") as file:
            ends = np.cumsum(file.get_tensor("lengths"))
            return Scores(np.split(file.get_tensor("logprobs"), ends[:-1]))


class Teacher(Protocol):
    """Whoever scores rollouts."""

    def score(self, rollouts: Rollouts) -> Scores:
        """log pi_teacher of every completion token."""


class LocalTeacher:
    """A transformers model in this process, scoring fixed batches of `batch_size` rollouts."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, batch_size: int) -> None:
        self.model, self.pad_id, self.batch_size = model, pad_id, batch_size

    def score(self, rollouts: Rollouts) -> Scores:
        rows: list[np.ndarray] = []
        for part, batch, logits in completion_logits(self.model, rollouts, self.pad_id, self.batch_size):
            rows += _split(token_logprobs(logits, batch.targets[batch.mask]), part)
        return Scores(rows)


def measure_reverse_kl(
    student: PreTrainedModel, teacher: PreTrainedModel, rollouts: Rollouts, *, pad_id: int, batch_size: int
) -> list[np.ndarray]:
    """Exact KL(student || teacher) at every completion token, in nats: N float32 arrays."""
    rows: list[np.ndarray] = []
    scored = zip(
        completion_logits(student, rollouts, pad_id, batch_size),
        completion_logits(teacher, rollouts, pad_id, batch_size),
        strict=True,
    )
    for (part, _, student_logits), (_, _, teacher_logits) in scored:
        rows += _split(reverse_kl(student_logits, teacher_logits), part)
    return rows


@torch.inference_mode()
def completion_logits(
    model: PreTrainedModel, rollouts: Rollouts, pad_id: int, batch_size: int
) -> Iterator[tuple[Rollouts, PaddedBatch, torch.Tensor]]:
    """For each fixed batch: its rollouts, the padded batch, the logits that predict completion tokens [M, V]."""
    model.eval()
    for part in rollouts.batches(batch_size):
        batch = PaddedBatch.of(part, pad_id, model.device)
        yield part, batch, model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[batch.mask]


def _split(values: torch.Tensor, rollouts: Rollouts) -> list[np.ndarray]:
    """Values of a batch's completion tokens [M], one array a rollout."""
    ends = np.cumsum([len(c) for c in rollouts.completions])
    return np.split(values.cpu().numpy(), ends[:-1])
