"""Resume points: from where a killed training job goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from effopd.models.models import Weights, save_tensors
from effopd.training.trainer import OptimizerState, Trainer


class ResumePoint:
    """One file from which a killed training job goes on, valid for one fingerprint."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self.fingerprint = path, fingerprint

    def save(self, weights: Weights, optimizer: OptimizerState, history: Any) -> None:
        """Replace the file atomically; `history` is what else the job goes on from, as a JSON value."""
        tensors = {f"weights.{name}": tensor for name, tensor in weights.items()} | optimizer.tensors()
        facts = {"fingerprint": self.fingerprint, "step": str(optimizer.step), "history": json.dumps(history)}
        save_tensors(self.path, tensors, facts)

    def load(self) -> tuple[Weights, OptimizerState, Any] | None:
        """What was saved, or None if there is nothing usable of this fingerprint."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                facts = file.metadata() or {}
                if facts.get("fingerprint") != self.fingerprint:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            step, history = int(facts["step"]), json.loads(facts["history"])
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError):
            return None
        weights = {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")}
        others = {n: t for n, t in tensors.items() if not n.startswith("weights.")}
        return weights, OptimizerState.from_tensors(step, others), history

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class ResumableTraining:
    """Puts a trainer where a killed attempt left it, and saves a resume point every few seconds of training.

    All methods are for all ranks together; the first writes.
    """

    def __init__(self, point: ResumePoint, trainer: Trainer, every_seconds: float) -> None:
        self.point, self.trainer, self.every_seconds = point, trainer, every_seconds
        self.saved_at = time.monotonic()

    def load(self) -> Any | None:
        """Give the trainer what was saved, and return the history that was saved with it; None if there is nothing."""
        if (saved := self.point.load()) is None:
            return None
        weights, optimizer, history = saved
        self.trainer.load_weights(weights)
        self.trainer.load_optimizer_state(optimizer)
        return history

    def steps(self, first: int, last: int, history: Any) -> Iterator[int]:
        """The steps from `first` to `last`; between two of them `save_if_due`, with `history` as it then is."""
        self.saved_at = time.monotonic()
        for step in range(first, last + 1):
            yield step
            if step < last:
                self.save_if_due(history)

    def save_if_due(self, history: Any) -> bool:
        """Save a resume point if the last one is old enough; returns whether it was."""
        due = self.trainer.broadcast(time.monotonic() - self.saved_at > self.every_seconds)
        if due:
            weights = self.trainer.weights(borrowed=True)
            optimizer = self.trainer.optimizer_state(borrowed=True)
            if self.trainer.first:
                self.point.save(weights, optimizer, history)
            self.saved_at = time.monotonic()
        return due

    def discard(self) -> None:
        """Delete the resume point: what it led to is written."""
        if self.trainer.first:
            self.point.discard()
