"""A step's artifacts from several hands: ranks that each make a share of it, or jobs that each have made a shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from effopd.artifacts.manifests import fingerprint_of, read_manifest, release
from effopd.common.errors import ArtifactError
from effopd.distillation.step_artifacts import Kind, Made, Rows
from effopd.training.trainer import Trainer


def make_or_reuse(
    kind: Kind[Made],
    path: Path,
    spec: dict[str, Any],
    parents: dict[str, str],
    trainer: Trainer,
    make: Callable[[], Made],
    cost_of: Callable[[Made, float], Rows],
    made_from_it: Path | None = None,
) -> tuple[Made, Rows]:
    """A step's artifact with its cost: what `path` holds if that is valid, else what all ranks' `make` amount to.

    If it has to be made, the artifact `made_from_it` is deleted: on a GPU, rollouts that are generated again are others
    than those that were scored.
    """
    started = time.time()
    held = kind.held(path, fingerprint_of(kind.name, spec, parents)) if trainer.first else None
    if (held := trainer.broadcast(held)) is not None:
        return held
    if trainer.first and made_from_it:
        made_from_it.unlink(missing_ok=True)
    working = time.perf_counter()
    made = kind.concatenate(trainer.gather(make()))
    cost = cost_of(made, time.perf_counter() - working)
    if trainer.first:
        kind.write(made, path, spec, parents, cost, started)
    return made, cost


def put_together(
    trainer: Trainer,
    spec: dict[str, Any],
    shards: int,
    kind: Kind[Made],
    path: Path,
    parents: dict[str, str],
    parts: Sequence[Path],
) -> tuple[Made, Rows]:
    """A step's artifact from its shards, written to `path` unless it is there already (or is the one part itself)."""
    started = time.time()
    result = None
    if trainer.first:
        result = kind.held(path, fingerprint_of(kind.name, spec, parents))
        if result is None and shards == 1:
            raise ArtifactError(
                f"{path} is damaged, or not what this step was made from. Delete it and run the workflow again."
            )
        manifests = [read_manifest(part, kind.name) for part in parts] if shards > 1 else []
        if result is None:
            for number, manifest in enumerate(manifests):
                if manifest.spec != {**spec, "shard": [number, shards]}:
                    raise ArtifactError(
                        f"{manifest.path} is not shard {number + 1} of {shards} of this step. "
                        "Delete it and run the workflow again."
                    )
            made = kind.concatenate([kind.open(manifest) for manifest in manifests])
            result = made, [row for manifest in manifests for row in manifest.recorded["cost"]]
            kind.write(made, path, spec, parents, result[1], started)
        for manifest in manifests:
            release(manifest, manifest.files, "put together")
    result = trainer.broadcast(result)
    assert result is not None
    return result
