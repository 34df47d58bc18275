"""Kept completions as files: what a model answered to a few problems, beside the manifest of its evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from effopd.artifacts.manifests import Manifest, atomic_path
from effopd.common.errors import ArtifactError

SUFFIX = ".samples.parquet"  # instead of the manifest's `.json`


@dataclass(frozen=True)
class Sample:
    """A problem, what was answered, and what the verifier said of it."""

    row: int  # of the problem in its split's data
    problem: str
    answer: str  # the reference
    prompt: str  # what the model saw, special tokens included
    completion: str  # what the verifier saw
    reward: float
    reason: str
    tokens: int  # of the completion, its end-of-sequence token counted
    finished: bool  # whether it ended by itself

    @property
    def verdict(self) -> str:
        """The reward in words; what else there is to say of it is `reason`."""
        judged = {0.0: "wrong", 1.0: "right"}.get(self.reward, f"partly right ({self.reward:.2g})")
        return judged if self.finished else f"{judged}, cut off"


_TYPES = {"int": pa.int64(), "str": pa.string(), "float": pa.float64(), "bool": pa.bool_()}
SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(Sample)])


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write a parquet file with a row a sample, all texts whole."""
    rows = [{name: _storable(value) for name, value in asdict(sample).items()} for sample in samples]
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary, compression="zstd")


def _storable(value: Any) -> Any:
    """The value; of a text, halves of surrogate pairs escaped: a tokenizer may give them, and no file holds them."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def read_samples(evaluated: Manifest) -> list[Sample] | None:
    """The samples that an evaluation kept; None if it kept none. Raises ArtifactError if they are not whole."""
    name = f"{evaluated.path.stem}{SUFFIX}"
    if name not in evaluated.files:
        return None
    path = evaluated.file(name)
    try:
        table = pq.read_table(path)
        if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
            raise ValueError("its columns are others")
        samples = [Sample(**row) for row in table.to_pylist()]
        if not all(math.isfinite(sample.reward) for sample in samples):
            raise ValueError("a reward is no number")
    except (ValueError, OSError) as error:  # those of Arrow among them
        remedy = f"Delete {evaluated.path} and run the workflow again: it makes this part anew."
        raise ArtifactError(f"{path} holds no samples ({error}). {remedy}") from None
    return samples
