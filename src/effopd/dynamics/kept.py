"""What training kept on its way, as checkpoints on disk: a run's states, or a model's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from effopd.artifacts.manifests import Manifest, read_manifest
from effopd.common.errors import ArtifactError
from effopd.models.weight_files import Checkpoint, Parameter, shared_parameters
from effopd.training.checkpoints import DECISION_WEIGHTS, WEIGHTS, Point

_CHECKPOINT = re.compile(r"checkpoints/step(\d+)\.safetensors")


@dataclass(frozen=True)
class Kept:
    """A base and the weights kept after some steps of training it, as files that are read piece by piece."""

    base: Checkpoint
    trained: dict[int, Checkpoint]  # by step, increasing
    parents: dict[str, str]  # fingerprints that name all of them

    @staticmethod
    def open(base: Path, states: Sequence[Path], decisions: Sequence[Path]) -> Kept:
        """Read the manifests `base` (a model), `states` and `decisions` (of the triggers at some of the states).

        A state's weights are those from which training goes on: the accepted candidate's, if there is one. A model
        among the states stands for its checkpoints and itself. Raises ArtifactError if files are not whole.
        """
        first = read_manifest(base, "model")
        decided = {read_manifest(path, "decision").parents["state"]: path for path in decisions}
        trained: dict[int, Checkpoint] = {}
        parents = {"base": first.fingerprint}
        for path in states:
            manifest = read_manifest(path)
            if manifest.kind == "model":
                trained |= {step: Checkpoint.open(file) for step, file in _checkpoints(manifest)}
                parents["model"] = manifest.fingerprint
                continue
            point = Point.open(path, decided.get(manifest.fingerprint))
            trained[point.step] = Checkpoint.open(_weights_file(point))
            parents |= {f"{name} {point.step}": fingerprint for name, fingerprint in point.parents.items()}
        return Kept(Checkpoint.open(_folder(first)), dict(sorted(trained.items())), parents)

    @property
    def last(self) -> int:
        """The step of the final weights."""
        return max(self.trained)

    def parameters(self) -> list[Parameter]:
        """The parameters that all have. Raises UserError if the architectures differ."""
        return shared_parameters([self.base, *self.trained.values()])

    def read(self, step: int, parameter: Parameter) -> torch.Tensor:
        """A parameter after a step, float32; the base's at step 0."""
        checkpoint = self.trained[step] if step else self.base
        return read_whole(checkpoint, parameter)


def read_whole(checkpoint: Checkpoint, parameter: Parameter) -> torch.Tensor:
    """A parameter of a checkpoint, float32."""
    rows = slice(0, parameter.shape[0]) if parameter.shape else slice(None)
    return checkpoint.read(parameter.name, rows).float()


def model_checkpoint(manifest: Manifest) -> Checkpoint:
    """A model's own weights. Raises ArtifactError if a file of them is not whole."""
    return Checkpoint.open(_folder(manifest))


def _folder(manifest: Manifest) -> Path:
    for name in manifest.files:
        if name.startswith("model") and name.endswith(".safetensors"):
            manifest.file(name)
    return manifest.path.parent


def _weights_file(point: Point) -> Path:
    if point.manifest.kind != "state":
        raise ArtifactError(f"{point.manifest.path} is not a state.")
    if point.decision is not None and point.decision.result["coefficient"] != 0:
        return point.decision.file(DECISION_WEIGHTS)
    return point.manifest.file(WEIGHTS)


def _checkpoints(model: Manifest) -> Iterator[tuple[int, Path]]:
    """(step, file or folder) of what a model kept while it was trained, and of itself, last."""
    steps = 0
    for name in model.files:
        if found := _CHECKPOINT.fullmatch(name):
            steps = max(steps, int(found[1]))
            yield int(found[1]), model.file(name)
    yield int(model.result.get("steps", steps + 1)), _folder(model)
