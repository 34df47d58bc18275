"""Scoring: what the teacher says of every completion token of the rollouts, and the exact reverse KL to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from effopd.common.errors import ArtifactError, ConfigError
from effopd.data.checked_numbers import NumberError
from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.losses.divergences import reverse_kl, token_logprobs
from effopd.models.lm_head import (
    Head,
    KnownTokens,
    Logits,
    completion_logits,
    completion_states,
    logits_of,
    position_chunks,
    tokens_of,
    vocabulary_of,
)
from effopd.models.models import save_tensors
from effopd.teachers.score_checks import check_scores


@dataclass
class Scores:
    """What the teacher says at every completion token of N rollouts.

    A column is empty if the objective does not use it; otherwise it has one array per rollout, of the completion's
    length.
    """

    logprobs: list[np.ndarray]  # float32 [length], log pi_teacher of the sampled tokens
    top_ids: list[np.ndarray] = field(default_factory=list)  # int32 [length, K], its likeliest tokens first
    top_logprobs: list[np.ndarray] = field(default_factory=list)  # float32 [length, K], theirs
    hidden_states: list[np.ndarray] = field(default_factory=list)  # float32 [length, H], the input of its head
    reference_logprobs: list[np.ndarray] = field(default_factory=list)  # float32 [length], log pi_base

    def __len__(self) -> int:
        return len(self.logprobs)

    @property
    def tokens(self) -> int:
        return sum(len(row) for row in self.logprobs)

    @property
    def scored_tokens(self) -> int:
        """The tokens that models were asked about: twice as many if there is a reference."""
        return self.tokens + sum(len(row) for row in self.reference_logprobs)

    def select(self, rows: Sequence[int]) -> Scores:
        return Scores(*([column[i] for i in rows] if column else [] for column in self._columns()))

    @staticmethod
    def concatenate(parts: Sequence[Scores]) -> Scores:
        columns = zip(*(part._columns() for part in parts), strict=True)
        return Scores(*([row for rows in column for row in rows] for column in columns))

    def write(self, path: Path) -> None:
        """Write safetensors: `lengths` int64 [N], and each column that there is, [tokens, ...].

        Raises NumberError, and writes nothing, if a number cannot be trained on.
        """
        lengths = np.array([len(row) for row in self.logprobs], np.int64)
        columns = {
            name: np.concatenate(column) for name, column in zip(_COLUMNS, self._columns(), strict=True) if column
        }
        try:
            check_scores(lengths, columns)
        except NumberError as error:
            raise NumberError(
                f"{error}. Nothing is written; check the teacher's weights and their precision."
            ) from None
        tensors = {"lengths": lengths, **columns}
        save_tensors(path, {name: torch.from_numpy(tensor) for name, tensor in tensors.items()})

    @staticmethod
    def read(path: Path) -> Scores:
        """The scores of a file. Raises OSError, SafetensorError or NumberError if it is damaged."""
        with safe_open(path, framework="np") as file:
            lengths = file.get_tensor("lengths")
            held = set(file.keys())
            columns = {name: file.get_tensor(name) for name in _COLUMNS if name in held}
        check_scores(lengths, columns)
        ends = np.cumsum(lengths)
        return Scores(*(np.split(columns[name], ends[:-1]) if name in columns else [] for name in _COLUMNS))

    def _columns(self) -> list[list[np.ndarray]]:
        return [getattr(self, name) for name in _COLUMNS]


_COLUMNS = ("logprobs", "top_ids", "top_logprobs", "hidden_states", "reference_logprobs")


class Teacher(Protocol):
    """Whoever scores rollouts."""

    def score(self, rollouts: Rollouts) -> Scores:
        """log pi_teacher of every completion token at temperature 1, and the columns that it was set up to give."""


class LocalTeacher:
    """A transformers model in this process, scoring fixed batches of `batch_size` rollouts.

    Beside the sampled tokens' log-probabilities its scores have the `top_k` likeliest tokens of each position (0: none;
    of `tokens` alone, if they are not all), or its last hidden states. Raises ConfigError if it has no
    `top_k` tokens and one more.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        pad_id: int,
        batch_size: int,
        top_k: int = 0,
        tokens: KnownTokens | None = None,
        hidden_states: bool = False,
    ) -> None:
        self.model, self.pad_id, self.batch_size = model, pad_id, batch_size
        self.top_k, self.hidden_states = top_k, hidden_states
        self.tokens = tokens or tokens_of(model)
        known = vocabulary_of(model) - len(self.tokens.unknown(vocabulary_of(model)))
        if top_k >= known:
            raise ConfigError(
                f"config: `training.objective.top_k` is {top_k}, and the teacher's vocabulary has {known} "
                "tokens. Lower it, or write `support: full`."
            )

    def score(self, rollouts: Rollouts) -> Scores:
        self.model.eval()
        passes = rollouts.passes(self.batch_size)
        scores = Scores.concatenate([self._score_pass(rollouts.select(rows)) for rows in passes])
        return scores.select(_places(passes))

    @torch.inference_mode()
    def _score_pass(self, part: Rollouts) -> Scores:
        batch = PaddedBatch.of(part, self.pad_id, self.model.device)
        targets = batch.targets[batch.mask]
        if self.hidden_states:
            states = completion_states(self.model, batch)
            logits = logits_of(Head.of(self.model), states)
        else:
            logits = completion_logits(self.model, batch)
        sampled, top = [], []
        for rows in position_chunks(len(targets), vocabulary_of(self.model)):
            chunk = logits(rows)
            sampled.append(token_logprobs(chunk, targets[rows]))
            if self.top_k:
                top.append(self.tokens(torch.log_softmax(chunk.float(), -1)).topk(self.top_k, -1))
        scores = Scores(_split(torch.cat(sampled), part))
        if top:
            scores.top_ids = _split(torch.cat([entry.indices.int() for entry in top]), part)
            scores.top_logprobs = _split(torch.cat([entry.values for entry in top]), part)
        if self.hidden_states:
            scores.hidden_states = _split(states.float(), part)
        return scores


class WithReference:
    """A teacher whose scores also have what a reference says of the sampled tokens (ExOPD, paper section 2)."""

    def __init__(self, teacher: Teacher, reference: Teacher) -> None:
        self.teacher, self.reference = teacher, reference

    def score(self, rollouts: Rollouts) -> Scores:
        scores = self.teacher.score(rollouts)
        scores.reference_logprobs = self.reference.score(rollouts).logprobs
        return scores


@torch.inference_mode()
def measure_logprobs(
    model: PreTrainedModel, rollouts: Rollouts, *, pad_id: int, batch_size: int, temperature: float
) -> list[np.ndarray]:
    """log pi of every completion token at a temperature, as the update has it but for rounding: N float32 arrays."""
    model.eval()
    found: list[np.ndarray] = []
    passes = rollouts.passes(batch_size)
    for rows in passes:
        part = rollouts.select(rows)
        batch = PaddedBatch.of(part, pad_id, model.device)
        logits, targets = completion_logits(model, batch), batch.targets[batch.mask]
        chunks = position_chunks(len(targets), vocabulary_of(model))
        found += _split(torch.cat([token_logprobs(logits(c) / temperature, targets[c]) for c in chunks]), part)
    return [found[place] for place in _places(passes)]


def measure_reverse_kl(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rollouts: Rollouts,
    *,
    pad_id: int,
    batch_size: int,
    temperature: float = 1.0,
) -> list[np.ndarray]:
    """Exact KL(student || teacher) at every completion token, in nats: N float32 arrays (ReverseKL)."""
    settings: dict[str, Any] = {"pad_id": pad_id, "batch_size": batch_size, "temperature": temperature}
    return ReverseKL(teacher, rollouts, **settings, remember=False).of(student)


class ReverseKL:
    """Exact KL(student || teacher) at every completion token of N rollouts, for one student after the other.

    The student is the policy at `temperature`; the teacher is as it is, as in the objectives. What it says is
    remembered from the first student on: its logits, where those of `shared_tokens` (default: all of the rollouts')
    fit in `remembered_bytes`, else its hidden states in main memory, from which its head makes them again.
    `scored_tokens` counts those that the teacher has been asked about so far.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        rollouts: Rollouts,
        *,
        pad_id: int,
        batch_size: int,
        temperature: float = 1.0,
        shared_tokens: int | None = None,
        remembered_bytes: int = 2**30,
        remember: bool = True,
    ) -> None:
        self.teacher, self.rollouts, self.pad_id, self.temperature = teacher, rollouts, pad_id, temperature
        self.passes = rollouts.passes(batch_size)
        self.remember, self.head = remember, None
        widest = max(vocabulary_of(teacher), teacher.config.get_text_config().hidden_size)
        if remember and 4 * widest * (shared_tokens or rollouts.completion_tokens) > remembered_bytes:
            try:
                self.head = Head.of(teacher)
            except ArtifactError:  # no plain head: it is asked each time
                self.remember = False
        self.remembered: list[Logits] = []
        self.scored_tokens = 0

    @torch.inference_mode()
    def of(self, student: PreTrainedModel) -> list[np.ndarray]:
        """In nats: N float32 arrays, as long as the completions."""
        student.eval()
        self.teacher.eval()
        tokens, found = tokens_of(student), list[np.ndarray]()
        for number, rows in enumerate(self.passes):
            part = self.rollouts.select(rows)
            batch = PaddedBatch.of(part, self.pad_id, student.device)
            of_student, of_teacher = completion_logits(student, batch), self._of_teacher(number, batch)
            chunks = position_chunks(part.completion_tokens, max(vocabulary_of(student), vocabulary_of(self.teacher)))
            values = [reverse_kl(self._policy(of_student(chunk)), tokens(of_teacher(chunk))) for chunk in chunks]
            found += _split(torch.cat(values), part)
        return [found[place] for place in _places(self.passes)]

    def _policy(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.temperature == 1 else logits / self.temperature

    def _of_teacher(self, number: int, batch: PaddedBatch) -> Logits:
        if number < len(self.remembered):
            return self.remembered[number]
        self.scored_tokens += int(batch.mask.sum())
        if self.head is None:
            logits = completion_logits(self.teacher, batch)
        else:
            logits = logits_of(self.head, completion_states(self.teacher, batch).cpu())
        if self.remember:
            self.remembered.append(logits)
        return logits


def _places(passes: list[list[int]]) -> list[int]:
    """Where each row stands among the results of the passes, one after the other."""
    order = [row for rows in passes for row in rows]
    return [int(row) for row in np.argsort(order)]


def _split(values: torch.Tensor, rollouts: Rollouts) -> list[np.ndarray]:
    """Values of a batch's completion tokens [M, ...], one array a rollout."""
    ends = np.cumsum([len(c) for c in rollouts.completions])
    return np.split(values.cpu().numpy(), ends[:-1])
