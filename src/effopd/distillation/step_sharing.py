"""A step's artifacts from several hands: ranks that each make a shard of it, or jobs that each have made a shard."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from effopd.artifacts.manifests import read_manifest, release
from effopd.common.errors import ArtifactError
from effopd.distillation.step_artifacts import Made, Rows, StepArtifact
from effopd.training.trainer import Trainer


def make_or_reuse(
    artifact: StepArtifact[Made], trainer: Trainer, make: Callable[[], Made], made_from_it: Path | None = None
) -> tuple[Made, Rows]:
    """Load a step's artifact with its cost if a valid one is there; otherwise build it on all ranks with `make`.

    If it has to be made, the artifact `made_from_it` is deleted: on a GPU, rollouts that are generated again are others
    than those that were scored.
    """
    started = time.time()
    held = artifact.held() if trainer.first else None
    if (held := trainer.broadcast(held)) is not None:
        return held
    if trainer.first and made_from_it:
        made_from_it.unlink(missing_ok=True)
    made, costs = artifact.timed(lambda: artifact.kind.concatenate(trainer.gather(make())))
    if trainer.first:
        artifact.write(made, costs, started)
    return made, costs


def put_together(artifact: StepArtifact[Made], trainer: Trainer, parts: Sequence[Path]) -> tuple[Made, Rows]:
    """A step's artifact from its shards, written unless it is there already (or is the one part itself)."""
    started = time.time()
    result = None
    if trainer.first:
        result, shards = artifact.held(), len(parts)
        if result is None and shards == 1:
            raise ArtifactError(
                f"{artifact.path} is damaged, or not what this step was made from. Delete it and run the workflow "
                "again."
            )
        manifests = [read_manifest(part, artifact.kind.name) for part in parts] if shards > 1 else []
        if result is None:
            for number, manifest in enumerate(manifests):
                if manifest.spec != {**artifact.spec, "shard": [number, shards]}:
                    raise ArtifactError(
                        f"{manifest.path} is not shard {number + 1} of {shards} of this step. "
                        "Delete it and run the workflow again."
                    )
            made = artifact.kind.concatenate([artifact.kind.open(manifest) for manifest in manifests])
            result = made, [row for manifest in manifests for row in manifest.recorded["cost"]]
            artifact.write(*result, started)
        for manifest in manifests:
            release(manifest, manifest.files, "put together")
    result = trainer.broadcast(result)
    assert result is not None
    return result
