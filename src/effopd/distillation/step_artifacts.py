"""What each step of a run leaves: its rollouts and its scores, one heavy file each with a manifest beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
from safetensors import SafetensorError

from effopd.artifacts.manifests import Manifest, read_manifest, write_manifest
from effopd.common.errors import ArtifactError
from effopd.data.checked_numbers import NumberError
from effopd.data.rollouts import Rollouts
from effopd.teachers.scoring import Scores

Rows = list[dict[str, Any]]


class _Artifact(Protocol):
    def write(self, path: Path) -> None: ...


Made = TypeVar("Made", bound=_Artifact)


@dataclass(frozen=True)
class Kind(Generic[Made]):
    """A kind of artifact that a step leaves: one heavy file with a manifest beside it."""

    name: str
    suffix: str
    read: Callable[[Path], Made]
    concatenate: Callable[[Sequence[Made]], Made]

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

    def held(self, path: Path, fingerprint: str) -> tuple[Made, Rows] | None:
        """The artifact at `path` and its cost, or None where there is none with this fingerprint that is whole."""
        try:
            manifest = read_manifest(path, self.name)
            if manifest.fingerprint == fingerprint:
                return self.open(manifest), manifest.recorded["cost"]
        except (ArtifactError, OSError):
            pass  # missing, cut short by a kill, or not to be used: make it (again)
        return None

    def write(
        self, made: Made, path: Path, spec: dict[str, Any], parents: dict[str, str], cost: Rows, started: float
    ) -> None:
        """Write the artifact beside `path`, and its manifest there."""
        file = path.with_suffix(self.suffix)
        made.write(file)
        write_manifest(
            path, kind=self.name, spec=spec, parents=parents, files={file.name: file}, cost=cost, started=started
        )


ROLLOUTS = Kind("rollouts", ".parquet", Rollouts.read, Rollouts.concatenate)
SCORES = Kind("scores", ".safetensors", Scores.read, Scores.concatenate)
