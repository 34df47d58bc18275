"""What each step of a run leaves: its rollouts and its scores, one heavy file each with a manifest beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
from safetensors import SafetensorError

from effopd.artifacts.cost import cost_row
from effopd.artifacts.manifests import Manifest, fingerprint_of, read_manifest, write_manifest
from effopd.common.errors import ArtifactError
from effopd.data.checked_numbers import NumberError
from effopd.data.rollouts import Rollouts
from effopd.teachers.scoring import Scores

Rows = list[dict[str, Any]]


class _Artifact(Protocol):
    def write(self, path: Path) -> None: ...


Made = TypeVar("Made", bound=_Artifact)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Kind(Generic[Made]):
    """A kind of artifact that a step leaves: one heavy file with a manifest beside it."""

    name: str
    suffix: str
    read: Callable[[Path], Made]
    concatenate: Callable[[Sequence[Made]], Made]
    cost: Callable[[int, float, Made], dict[str, Any]]  # step, seconds, what was made -> a row of the cost ledger

    def open(self, manifest: Manifest) -> Made:
        """The artifact of a manifest. Raises ArtifactError if its file is damaged.

        If the file is the one that was written, but nothing can be done with what it holds, the manifest is deleted:
        the next run makes the artifact again.
        """
        file = manifest.file(manifest.path.stem + self.suffix)
        try:
            return self.read(file)
        except (SafetensorError, pa.ArrowException, NumberError, ValueError, KeyError) as error:
            manifest.path.unlink(missing_ok=True)
            raise ArtifactError(
                f"{file} cannot be used ({error}). Run the workflow again: it makes this part anew."
            ) from None


ROLLOUTS = Kind(
    "rollouts",
    ".parquet",
    Rollouts.read,
    Rollouts.concatenate,
    lambda step, seconds, made: cost_row("generate rollouts", step, seconds, generated=made.completion_tokens),
)
SCORES = Kind(
    "scores",
    ".safetensors",
    Scores.read,
    Scores.concatenate,
    lambda step, seconds, made: cost_row("score rollouts", step, seconds, scored=made.scored_tokens),
)


@dataclass(frozen=True)
class StepArtifact(Generic[Made]):
    """One artifact of a step: the manifest that stands for it, there or not, and what it is made from."""

    kind: Kind[Made]
    path: Path
    spec: dict[str, Any]
    parents: dict[str, str]

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(self.kind.name, self.spec, self.parents)

    def held(self) -> tuple[Made, Rows] | None:
        """What lies there and its cost; None unless it is whole and has the fingerprint."""
        try:
            manifest = read_manifest(self.path, self.kind.name)
            if manifest.fingerprint == self.fingerprint:
                return self.kind.open(manifest), manifest.recorded["cost"]
        except (ArtifactError, OSError):
            pass  # missing, cut short by a kill, or not to be used: make it (again)
        return None

    def write(self, made: Made, costs: Rows, started: float) -> None:
        """Write the heavy file and then its manifest."""
        file = self.path.with_suffix(self.kind.suffix)
        made.write(file)
        write_manifest(
            self.path,
            kind=self.kind.name,
            spec=self.spec,
            parents=self.parents,
            files={file.name: file},
            cost=costs,
            started=started,
        )

    def timed(self, make: Callable[[], Made]) -> tuple[Made, Rows]:
        """What `make` makes, and its cost."""
        working = time.perf_counter()
        made = make()
        return made, [self.kind.cost(self.spec["step"], time.perf_counter() - working, made)]


@dataclass
class StepLog:
    """Metrics and costs of the steps since the start of a segment; JSON values."""

    metrics: Rows = field(default_factory=list)  # one row per step
    costs: Rows = field(default_factory=list)

    def charge(self, result: tuple[Result, Rows]) -> Result:
        """Note what a part of a step cost, and return what it made."""
        self.costs += result[1]
        return result[0]
