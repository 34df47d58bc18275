"""Training states on disk: the weights, optimizer and step with which a segment ends and the next one starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from effopd.artifacts.manifests import Manifest, read_manifest
from effopd.common.errors import ArtifactError
from effopd.models.models import Weights, load_model, load_tensors, save_tensors, weights_in
from effopd.training.trainer import OptimizerState

WEIGHTS, OPTIMIZER, DECISION_WEIGHTS = "weights.safetensors", "optimizer.safetensors", "weights.safetensors"
METRICS = "metrics.parquet"


@dataclass(frozen=True)
class Point:
    """A point of a run: a model (step 0), a state or predicted weights; and the decision at it if it is a trigger."""

    manifest: Manifest
    decision: Manifest | None

    @staticmethod
    def open(state: str | Path, decision: str | Path | None = None) -> Point:
        """Read the manifests. Raises ArtifactError unless the decision is of this very state."""
        manifest = read_manifest(state)
        if manifest.kind not in ("model", "state", "prediction"):
            raise ArtifactError(f"{state} is a {manifest.kind!r} artifact where a model or a state is needed.")
        if decision is None:
            return Point(manifest, None)
        decided = read_manifest(decision, "decision")
        if decided.parents["state"] != manifest.fingerprint:
            raise ArtifactError(
                f"{decision} was decided for another state than {state} (fingerprint {decided.parents['state']}, "
                f"not {manifest.fingerprint}). Delete it and run the workflow again."
            )
        return Point(manifest, decided)

    @property
    def step(self) -> int:
        return 0 if self.manifest.kind == "model" else int(self.manifest.result["step"])

    @property
    def parents(self) -> dict[str, str]:
        """The fingerprints that name the weights from which training goes on."""
        return {
            "state": self.manifest.fingerprint,
            **({"decision": self.decision.fingerprint} if self.decision else {}),
        }

    @property
    def jumped(self) -> float:
        """The coefficient that was accepted here; 0 if none was."""
        return 0.0 if self.decision is None else float(self.decision.result["coefficient"])

    def raw_weights(self) -> Weights:
        """The weights before any extrapolation at this step."""
        if self.manifest.kind != "model":
            return load_tensors(self.manifest.file(WEIGHTS))
        for name in self.manifest.files:
            self.manifest.file(name)  # whole, or an error that says what to do
        return weights_in(load_model(self.manifest.path.parent, torch.device("cpu")))

    def weights(self) -> Weights:
        """The weights from which training goes on: the accepted candidate's, or the raw ones."""
        if self.decision is not None and self.jumped:
            return load_tensors(self.decision.file(DECISION_WEIGHTS))
        return self.raw_weights()

    def optimizer(self) -> OptimizerState | None:
        """AdamW's moments, as the last update left them, and LoRA's factors; None at step 0."""
        if self.manifest.kind == "model":
            return None
        return OptimizerState.from_tensors(
            self.manifest.result["optimizer_steps"], load_tensors(self.manifest.file(OPTIMIZER))
        )


def save_state(folder: Path, weights: Weights, optimizer: OptimizerState) -> dict[str, Path]:
    """Write a state's heavy files; the manifest that makes them valid is the caller's to write afterwards."""
    files = {WEIGHTS: folder / WEIGHTS, OPTIMIZER: folder / OPTIMIZER}
    save_tensors(files[WEIGHTS], weights)
    save_tensors(files[OPTIMIZER], optimizer.tensors())
    return files
