"""Rollouts: prompts with sampled completions, ragged, as the engine made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from effopd.artifacts.manifests import atomic_path
from effopd.data.batching import passes_of


@dataclass
class Rollouts:
    """N prompts and their completions.

    Completions end with the end-of-sequence token where `finished`, and are cut at the length limit where not.
    """

    prompts: list[list[int]]  # N lists of token ids
    completions: list[list[int]]  # N lists of token ids, none empty
    logprobs: list[np.ndarray]  # N float32 arrays, log pi(token) under the distribution sampled from
    finished: list[bool]  # N
    indices: list[int] = field(default_factory=list)  # N, row of the prompt in its split

    def __post_init__(self) -> None:
        size = len(self.prompts)
        for name in ("completions", "logprobs", "finished"):
            if (got := len(getattr(self, name))) != size:
                raise ValueError(f"{name} has {got} rows where there are {size} prompts")
        self.indices = self.indices or list(range(size))
        for row, (completion, logprobs) in enumerate(zip(self.completions, self.logprobs, strict=True)):
            if len(completion) != len(logprobs) or not completion:
                raise ValueError(f"rollout {row}: {len(completion)} completion tokens, {len(logprobs)} log-probs")

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def completion_tokens(self) -> int:
        return sum(len(c) for c in self.completions)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt and its completion."""
        return [
            len(prompt) + len(completion) for prompt, completion in zip(self.prompts, self.completions, strict=True)
        ]

    def select(self, rows: Sequence[int]) -> Rollouts:
        def pick(values: list[Any]) -> list[Any]:
            return [values[i] for i in rows]

        return Rollouts(
            pick(self.prompts), pick(self.completions), pick(self.logprobs), pick(self.finished), pick(self.indices)
        )

    def batches(self, size: int) -> list[Rollouts]:
        """Fixed batches of `size` rows in order."""
        return [self.select(range(i, min(i + size, len(self)))) for i in range(0, len(self), size)]

    def passes(self, size: int) -> list[list[int]]:
        """Rows of the forward passes over fixed batches of `size`: each batch in as many as its padding is worth."""
        lengths = self.lengths
        return [
            [first + row for row in rows]
            for first in range(0, len(self), size)
            for rows in passes_of(lengths[first : first + size], size)
        ]

    @staticmethod
    def concatenate(parts: Sequence[Rollouts]) -> Rollouts:
        return Rollouts(*([item for part in parts for item in getattr(part, name)] for name in _COLUMNS))

    def write(self, path: Path) -> None:
        """Write a parquet file with a row a rollout."""
        table = pa.table(
            {
                "prompts": pa.array(self.prompts, pa.list_(pa.int32())),
                "completions": pa.array(self.completions, pa.list_(pa.int32())),
                "logprobs": pa.array(self.logprobs, pa.list_(pa.float32())),
                "finished": pa.array(self.finished, pa.bool_()),
                "indices": pa.array(self.indices, pa.int64()),
            }
        )
        with atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @staticmethod
    def read(path: Path) -> Rollouts:
        """The rollouts of a parquet file. Raises pyarrow.ArrowException if it is damaged."""
        table = pq.read_table(path)
        columns = {name: table.column(name).to_pylist() for name in _COLUMNS if name != "logprobs"}
        logprobs = [np.asarray(row.as_py(), np.float32) for row in table.column("logprobs")]
        return Rollouts(logprobs=logprobs, **columns)


_COLUMNS = ("prompts", "completions", "logprobs", "finished", "indices")


@dataclass
class PaddedBatch:
    """B sequences of prompt and completion, padded on the right to T tokens.

    Under causal attention nothing sees the padding behind it, so no attention mask is needed.
    """

    tokens: torch.Tensor  # int64 [B, T]
    mask: torch.Tensor  # bool [B, T-1]; True where tokens[:, 1:] is a completion token

    @property
    def targets(self) -> torch.Tensor:
        """The next tokens, int64 [B, T-1]."""
        return self.tokens[:, 1:]

    def flatten(self, values: Sequence[np.ndarray]) -> torch.Tensor:
        """Ragged per-token values as float32 [number of True in mask], in the mask's order."""
        return torch.from_numpy(np.concatenate(values)).to(self.tokens.device)

    @staticmethod
    def of(rollouts: Rollouts, pad_id: int, device: torch.device) -> PaddedBatch:
        longest = max(rollouts.lengths)
        tokens = np.full((len(rollouts), longest), pad_id, np.int64)
        mask = np.zeros((len(rollouts), longest - 1), bool)
        for row, (prompt, completion) in enumerate(zip(rollouts.prompts, rollouts.completions, strict=True)):
            end = len(prompt) + len(completion)
            tokens[row, :end] = prompt + completion
            mask[row, len(prompt) - 1 : end - 1] = True
        return PaddedBatch(torch.from_numpy(tokens).to(device), torch.from_numpy(mask).to(device))
