"""Segments: the on-policy distillation steps between two kept states, packed into jobs in either of two ways.

- Colocated: `train_segment` does all steps of a segment in one job, with warm engines.
- Staged: `generate_rollouts`, `score_rollouts` and `update_policy` do one step in jobs of their own, the first two in
  shards.

Both write the same artifacts with the same fingerprints (bitwise the same on CPU): what a step's rollouts, scores and
state are made from is the state at which their segment starts, and the step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Unpack

import pandas as pd
import torch

from effopd.artifacts.locks import exclusive
from effopd.artifacts.manifests import read_manifest, release
from effopd.common.progress import Progress, say
from effopd.data.prompts import load_tokens
from effopd.data.rollouts import Rollouts
from effopd.data.sharding import Shard
from effopd.distillation.learner import Learner, sync_policy, teacher_of
from effopd.distillation.segment import InputPaths, Inputs, Segment, place_of
from effopd.distillation.step import generate_rollouts as generate
from effopd.distillation.step_artifacts import ROLLOUTS, Rows, StepLog
from effopd.distillation.step_sharing import make_or_reuse, put_together
from effopd.models.models import load_tokenizer
from effopd.specs.segments import StepOfSegment, TrainSegment
from effopd.teachers.scoring import Scores
from effopd.training.checkpoints import METRICS, OPTIMIZER, WEIGHTS, Point
from effopd.training.resume import ResumableTraining, ResumePoint

RESUME_EVERY_SECONDS = 30.0


def train_segment(
    spec: TrainSegment, *, out: Path, run_folder: Path, device: torch.device, **paths: Unpack[InputPaths]
) -> None:
    """Train from the state (and decision) at spec.start to spec.end and write the state manifest `out`.

    Every step's rollouts and scores go to `run_folder` before they are trained on, so a killed segment regenerates
    nothing; it goes on from its last resume point and replays the steps since then. Under several ranks each generates
    and scores its shard. Raises ArtifactError if an input is not what it should be, DivergenceError if training breaks.
    """
    started = time.time()
    training, first, last = spec.training, spec.start, spec.end
    inputs = Inputs.open(first, **paths)
    segment, prompts = Segment.from_inputs(spec, inputs), load_tokens(inputs.prompts, "train")
    learner = Learner(spec, inputs, device)
    teacher, trainer = learner.scorer(), learner.trainer
    # ZeRO 3 partitions the model in training, so that generation needs another one.
    policy_model = learner.policy_model() if training.zero_stage == 3 else trainer.model
    shard = Shard(trainer.rank, trainer.ranks)
    resume = ResumableTraining(
        ResumePoint(out.with_name("resume.safetensors"), segment.fingerprint(end=last)), trainer, RESUME_EVERY_SECONDS
    )

    def generated(step: int) -> tuple[Rollouts, Rows]:
        rollouts, scores = (run_folder / f"{kind}/step{step}.json" for kind in ("rollouts", "scores"))
        make = partial(generate, engine, prompts, training, spec.seed, step, shard)
        return make_or_reuse(segment.rollouts(rollouts, step=step), trainer, make, made_from_it=scores)

    def scored(step: int, rollouts: Rollouts) -> tuple[Scores, Rows]:
        mine = rollouts.select(shard.rows(len(rollouts), training.batch_size))
        artifact = segment.scores(run_folder / f"scores/step{step}.json", step=step)
        return make_or_reuse(artifact, trainer, partial(teacher.score, mine))

    lock = exclusive(out.parent) if trainer.first else nullcontext()
    with lock, closing(learner.engine(prompts, policy_model)) as engine:
        trainer.wait()  # for the first rank to have the folder to itself
        log = StepLog(**(resume.load() or {}))
        done = first + len(log.metrics)
        if done > first:
            sync_policy(policy_model, trainer)
            say(f"going on after step {done}")
        progress = Progress(f"steps {first + 1}-{last}: step", last, done=done)
        extrapolate = learner.extrapolation(log.metrics, teacher)
        for step in resume.steps(done + 1, last, vars(log)):
            rollouts = log.charge(generated(step))
            scores = log.charge(scored(step, rollouts))
            metrics = log.charge(learner.update(rollouts, scores, step))
            metrics |= log.charge(extrapolate(rollouts, step))
            log.metrics.append({"step": step, **metrics})
            sync_policy(policy_model, trainer)
            progress.update(step, reverse_kl=metrics["reverse_kl"])
        segment.write_state(out, last, trainer, log, started)
        resume.discard()


def generate_rollouts(spec: StepOfSegment, *, out: Path, device: torch.device, **paths: Unpack[InputPaths]) -> None:
    """Generate the rollouts of spec.step, or its shard of them, with the weights of the step before."""
    started, step = time.time(), spec.step
    inputs = Inputs.open(step - 1, **paths)
    learner, prompts = Learner(spec, inputs, device), load_tokens(inputs.prompts, "train")
    artifact = Segment.from_inputs(spec, inputs).rollouts(out, **place_of(spec))
    with closing(learner.engine(prompts, learner.policy_model())) as engine:
        shard = Shard(*spec.shard)
        make = partial(generate, engine, prompts, spec.training, spec.seed, step, shard)
        rollouts, costs = artifact.timed(make)
    artifact.write(rollouts, costs, started)
    say(f"done: {len(rollouts)} rollouts, {rollouts.completion_tokens} tokens")


def score_rollouts(
    spec: StepOfSegment, *, student: Path, teacher: Path, rollouts: Path, out: Path, device: torch.device
) -> None:
    """Score the rollouts of spec.step, or a shard of them, with the teacher.

    Raises ArtifactError if the rollouts are not of that step, shard, student and teacher.
    """
    started = time.time()
    models, generated = (
        [read_manifest(path, "model") for path in (student, teacher)],
        read_manifest(rollouts, "rollouts"),
    )
    artifact = Segment.from_rollouts(spec, generated, *models).scores(out, **place_of(spec))
    scorer = teacher_of(spec.training, student.parent, teacher.parent, load_tokenizer(student.parent), device)
    scores, costs = artifact.timed(lambda: scorer.score(ROLLOUTS.open(generated)))
    artifact.write(scores, costs, started)
    say(f"done: {scores.tokens} tokens scored")


def update_policy(
    spec: StepOfSegment,
    *,
    rollouts: Sequence[Path],
    scores: Sequence[Path],
    out: Path,
    run_folder: Path,
    device: torch.device,
    **paths: Unpack[InputPaths],
) -> None:
    """Do optimizer step spec.step on the rollouts and scores of its shards and write the state manifest `out`.

    Several shards are put together into the step's one artifact of each kind in `run_folder`. Under several ranks each
    works on its shard of the batch, and the first writes.
    """
    started, step = time.time(), spec.step
    inputs = Inputs.open(step - 1, **paths)
    segment, learner = Segment.from_inputs(spec, inputs), Learner(spec, inputs, device)
    trainer, point = learner.trainer, inputs.point
    with exclusive(out.parent) if trainer.first else nullcontext():
        if trainer.first:
            _release_state_before(point)
        log = StepLog()
        if point.step > spec.start:
            metrics_before = pd.read_parquet(point.manifest.file(METRICS)).to_dict("records")
            log = StepLog(metrics_before, list(point.manifest.recorded["cost"]))
        of_rollouts = segment.rollouts(run_folder / f"rollouts/step{step}.json", step=step)
        of_scores = segment.scores(run_folder / f"scores/step{step}.json", step=step)
        generated = log.charge(put_together(of_rollouts, trainer, rollouts))
        scored = log.charge(put_together(of_scores, trainer, scores))
        extrapolate = learner.extrapolation(log.metrics)
        metrics = log.charge(learner.update(generated, scored, step))
        metrics |= log.charge(extrapolate(generated, step))
        log.metrics.append({"step": step, **metrics})
        segment.write_state(out, step, trainer, log, started)


def _release_state_before(point: Point) -> None:
    """Delete the weights of the state before a staged step's own start, unless it is a kept one.

    Everything made from it is complete: Snakemake starts no job before the last has ended.
    """
    if point.manifest.kind == "state" and point.step - 1 > point.manifest.spec["start"]:
        folder = point.manifest.path.parent.parent / str(point.step - 1)
        release(read_manifest(folder / point.manifest.path.name, "state"), [WEIGHTS, OPTIMIZER], "between kept states")
