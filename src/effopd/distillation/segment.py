"""A segment: the on-policy steps between two kept states. Its inputs, and the identity of the artifacts it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pandas as pd

from effopd.artifacts.manifests import Manifest, atomic_path, fingerprint_of, read_manifest, write_manifest
from effopd.common.errors import ArtifactError
from effopd.common.progress import say
from effopd.data.rollouts import Rollouts
from effopd.distillation.step_artifacts import ROLLOUTS, SCORES, StepArtifact, StepLog
from effopd.specs.segments import SegmentSpec, StepOfSegment
from effopd.teachers.scoring import Scores
from effopd.training.checkpoints import METRICS, Point, save_state
from effopd.training.trainer import Trainer


class InputPaths(TypedDict):
    """Manifests that a job on a segment reads."""

    student: Path  # the untrained model
    teacher: Path
    prompts: Path
    state: Path  # that the job starts from; the student for the first step of a run
    decision: Path | None  # of the trigger at that state


@dataclass(frozen=True)
class Inputs:
    """What a job on a segment reads."""

    student: Manifest
    teacher: Manifest
    prompts: Manifest
    point: Point

    @staticmethod
    def open(step: int, **paths: Unpack[InputPaths]) -> Inputs:
        """Read the manifests. Raises ArtifactError if the state is not at `step`."""
        point = Point.open(paths["state"], paths["decision"])
        if point.step != step:
            raise ArtifactError(f"{paths['state']} is at step {point.step} where step {step} is needed.")
        student, teacher = read_manifest(paths["student"], "model"), read_manifest(paths["teacher"], "model")
        return Inputs(student, teacher, read_manifest(paths["prompts"], "prompts"), point)


@dataclass(frozen=True)
class Segment:
    """What all artifacts of a segment have in common."""

    settings: dict[str, Any]  # what the specs of its jobs have in common, as JSON
    parents: dict[str, str]  # fingerprints: student, teacher, prompts, the state at the start and its decision

    @staticmethod
    def from_inputs(spec: SegmentSpec, inputs: Inputs) -> Segment:
        """The segment that a job works on. Raises ArtifactError if its point does not belong to the segment."""
        settings = _in_common(spec)
        models = {name: getattr(inputs, name).fingerprint for name in ("student", "teacher", "prompts")}
        point = inputs.point
        if point.step == spec.start:
            return Segment(settings, {**models, **point.parents})
        segment = Segment(settings, point.manifest.parents)
        if point.manifest.spec != segment.spec(end=point.step) or not models.items() <= segment.parents.items():
            raise ArtifactError(
                f"{point.manifest.path} (step {point.step}) is not a state of the segment that starts at step "
                f"{spec.start}. Delete it and run the workflow again."
            )
        return segment

    @staticmethod
    def from_rollouts(spec: StepOfSegment, rollouts: Manifest, student: Manifest, teacher: Manifest) -> Segment:
        """The segment of the rollouts that a staged job scores. Raises ArtifactError if they are not the job's."""
        place, segment = place_of(spec), Segment(_in_common(spec), rollouts.parents)
        models = {"student": student.fingerprint, "teacher": teacher.fingerprint}
        if rollouts.spec != segment.spec(**place) or not models.items() <= rollouts.parents.items():
            raise ArtifactError(f"{rollouts.path} are not the rollouts to score. Delete it and run the workflow again.")
        return segment

    def spec(self, **place: Any) -> dict[str, Any]:
        """The manifest's spec of one of its artifacts: `step=` for rollouts and scores, `end=` for states."""
        return {**self.settings, **place}

    def fingerprint(self, end: int) -> str:
        """The fingerprint of its state after step `end`."""
        return fingerprint_of("state", self.spec(end=end), self.parents)

    def rollouts(self, path: Path, **place: Any) -> StepArtifact[Rollouts]:
        """A step's rollouts, or a shard of them, with the manifest `path`."""
        return StepArtifact(ROLLOUTS, path, self.spec(**place), self.parents)

    def scores(self, path: Path, **place: Any) -> StepArtifact[Scores]:
        """A step's scores, or a shard of them, with the manifest `path`."""
        rollouts = self.rollouts(path, **place).fingerprint
        return StepArtifact(SCORES, path, self.spec(**place), {**self.parents, "rollouts": rollouts})

    def write_state(self, out: Path, step: int, trainer: Trainer, log: StepLog, started: float) -> None:
        """Write the state after `step`: weights, optimizer, and the metrics of the steps since the segment's start.

        For all ranks together; the first writes.
        """
        weights, optimizer = trainer.weights(borrowed=True), trainer.optimizer_state(borrowed=True)
        if not trainer.first:
            return
        files = save_state(out.parent, weights, optimizer)
        files[METRICS] = out.parent / METRICS
        with atomic_path(files[METRICS]) as temporary:
            pd.DataFrame(log.metrics).to_parquet(temporary, index=False)
        shown: dict[str, Any] = {
            name: log.metrics[-1][name] for name in ("reverse_kl", "coefficient") if name in log.metrics[-1]
        }
        write_manifest(
            out,
            kind="state",
            spec=self.spec(end=step),
            parents=self.parents,
            files=files,
            result={"step": step, "optimizer_steps": optimizer.step, **shown},
            cost=log.costs,
            started=started,
        )
        say(f"done: reverse KL of the last step's rollouts {shown['reverse_kl']:.4f}")


def place_of(spec: StepOfSegment) -> dict[str, Any]:
    """Which step, and which shard of it, a staged job works on: what its artifact's spec has beside the segment's."""
    return {key: spec.content[key] for key in ("step", "shard") if key in spec.content}


def _in_common(spec: SegmentSpec) -> dict[str, Any]:
    """What the specs of a segment's jobs have in common, as JSON."""
    return {key: value for key, value in spec.content.items() if key not in ("step", "shard", "end")}
