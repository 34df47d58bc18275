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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from effopd.artifacts.cost import cost_row
from effopd.artifacts.locks import exclusive
from effopd.artifacts.manifests import Manifest, atomic_path, fingerprint_of, read_manifest, release, write_manifest
from effopd.common.errors import ArtifactError
from effopd.common.progress import Progress, say
from effopd.data.prompts import load_tokens
from effopd.data.rollouts import Rollouts
from effopd.data.sharding import WHOLE, Share
from effopd.distillation import step as distillation
from effopd.distillation.learner import Jump, Learner, renew, teacher_head_of, teacher_of
from effopd.distillation.step_artifacts import ROLLOUTS, SCORES, Rows
from effopd.distillation.step_sharing import make_or_reuse, put_together
from effopd.models.lm_head import Head
from effopd.models.models import load_tokenizer
from effopd.teachers.scoring import Scores
from effopd.training.checkpoints import METRICS, OPTIMIZER, WEIGHTS, Point, ResumePoint, save_state
from effopd.training.trainer import Trainer

RESUME_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class _Segment:
    """What all artifacts of a segment have in common."""

    settings: dict[str, Any]  # training, extrapolation, parts, task, seed, start, code
    parents: dict[str, str]  # fingerprints: student, teacher, prompts, the state at the start and its ledger

    @staticmethod
    def of(spec: dict[str, Any], student: Manifest, teacher: Manifest, prompts: Manifest, point: Point) -> _Segment:
        """The segment that a job works on from `point`. Raises ArtifactError where that is no point of it."""
        settings = {key: spec[key] for key in ("training", "extrapolation", "parts", "task", "seed", "start", "code")}
        own = {"student": student.fingerprint, "teacher": teacher.fingerprint, "prompts": prompts.fingerprint}
        if point.step == spec["start"]:
            return _Segment(settings, {**own, **point.parents})
        segment = _Segment(settings, point.manifest.parents)
        if point.manifest.spec != segment.spec(end=point.step) or not own.items() <= segment.parents.items():
            raise ArtifactError(
                f"{point.manifest.path} (step {point.step}) is no state of the segment that starts at step "
                f"{spec['start']}. Delete it and run the workflow again."
            )
        return segment

    def spec(self, **place: Any) -> dict[str, Any]:
        """The manifest's spec of one of its artifacts: `step=` for rollouts and scores, `end=` for states."""
        return {**self.settings, **place}

    def rollouts(self, **place: Any) -> str:
        """The fingerprint of a step's rollouts."""
        return fingerprint_of(ROLLOUTS.name, self.spec(**place), self.parents)

    def scored(self, rollouts: str) -> dict[str, str]:
        """The parents of the scores of rollouts with that fingerprint."""
        return {**self.parents, "rollouts": rollouts}


def _place(spec: dict[str, Any]) -> tuple[dict[str, Any], Share]:
    """Which step, and which share of it, a staged job works on: for its artifact's spec, and as a Share."""
    place: dict[str, Any] = {key: spec[key] for key in ("step", "shard") if key in spec}
    return place, Share(*spec["shard"]) if "shard" in spec else WHOLE


def _at(point: Point, state: Path, step: int) -> None:
    if point.step != step:
        raise ArtifactError(f"{state} is at step {point.step} where step {step} is needed.")


def train_segment(
    spec: dict[str, Any],
    *,
    student: Path,
    teacher: Path,
    prompts: Path,
    state: Path,
    ledger: Path | None,
    out: Path,
    run_folder: Path,
    device: torch.device,
) -> None:
    """Train from the state (and ledger) at spec["start"] to spec["end"] and write the state manifest `out`.

    `student` and `teacher` are model manifests, `state` the student's for a first segment. Every step's rollouts and
    scores go to `run_folder` before they are trained on, so a killed segment regenerates nothing; it goes on from its
    last resume point and replays the steps since then. Under several ranks each generates and scores its share.
    Raises ArtifactError where an input is not what it should be, DivergenceError where training breaks.
    """
    started = time.time()
    training, seed, first, last = spec["training"], spec["seed"], spec["start"], spec["end"]
    student_manifest, teacher_manifest = read_manifest(student, "model"), read_manifest(teacher, "model")
    prompts_manifest, point = read_manifest(prompts, "prompts"), Point.open(state, ledger)
    _at(point, state, first)
    segment = _Segment.of(spec, student_manifest, teacher_manifest, prompts_manifest, point)
    learner = Learner(spec, student_manifest, point, device)
    tokens = load_tokens(prompts_manifest, "train")
    scorer = teacher_of(training, student.parent, teacher.parent, learner.tokenizer, device)
    teacher_head = teacher_head_of(training, teacher.parent, learner.tokenizer, device)
    trainer = learner.trainer(seed)
    acting = learner.acting() if training["zero_stage"] == 3 else trainer.model  # ZeRO 3 has taken that one apart
    share = Share(trainer.rank, trainer.ranks)
    lock = exclusive(out.parent) if trainer.first else nullcontext()
    with lock, closing(learner.engine(tokens, acting)) as engine:
        resume = ResumePoint(
            out.with_name("resume.safetensors"), fingerprint_of("state", segment.spec(end=last), segment.parents)
        )
        rows: Rows = []
        costs: Rows = []
        trainer.wait()  # for the first rank to have the folder to itself
        if saved := resume.load():
            weights, optimizer, history = saved
            trainer.load_weights(weights)
            trainer.load_optimizer_state(optimizer)
            renew(acting, trainer)
            rows, costs = history["metrics"], history["costs"]
            say(f"going on after step {first + len(rows)}")
        progress = Progress(f"steps {first + 1}-{last}: step", last, done=first + len(rows))
        jump = learner.jump(trainer, teacher.parent, seed, rows, scorer)
        saved_at = time.monotonic()
        for step in range(first + len(rows) + 1, last + 1):
            rollouts, made = make_or_reuse(
                ROLLOUTS,
                run_folder / f"rollouts/step{step}.json",
                segment.spec(step=step),
                segment.parents,
                trainer,
                partial(distillation.generate_rollouts, engine, tokens, training, seed, step, share),
                partial(_generation_cost, step),
                made_from_it=run_folder / f"scores/step{step}.json",
            )
            costs += made
            mine = rollouts.select(share.rows(len(rollouts), training["batch_size"]))
            scores, made = make_or_reuse(
                SCORES,
                run_folder / f"scores/step{step}.json",
                segment.spec(step=step),
                segment.scored(segment.rollouts(step=step)),
                trainer,
                partial(scorer.score, mine),
                partial(_scoring_cost, step),
            )
            costs += made
            _update(learner, trainer, jump, rollouts, scores, step, teacher_head, rows, costs)
            renew(acting, trainer)
            progress.update(step, reverse_kl=rows[-1]["reverse_kl"])
            if step < last and trainer.broadcast(time.monotonic() - saved_at > RESUME_EVERY_SECONDS):
                weights, optimizer = trainer.weights(), trainer.optimizer_state()
                if trainer.first:
                    resume.save(weights, optimizer, {"metrics": rows, "costs": costs})
                saved_at = time.monotonic()
        _write_state(out, segment, last, trainer, rows, costs, started)
        if trainer.first:
            resume.discard()


def generate_rollouts(
    spec: dict[str, Any],
    *,
    student: Path,
    teacher: Path,
    prompts: Path,
    state: Path,
    ledger: Path | None,
    out: Path,
    device: torch.device,
) -> None:
    """Generate the rollouts of spec["step"], or its shard of them, with the weights of the step before."""
    started = time.time()
    training, point = spec["training"], Point.open(state, ledger)
    student_manifest, prompts_manifest = read_manifest(student, "model"), read_manifest(prompts, "prompts")
    _at(point, state, spec["step"] - 1)
    segment = _Segment.of(spec, student_manifest, read_manifest(teacher, "model"), prompts_manifest, point)
    learner = Learner(spec, student_manifest, point, device)
    place, share = _place(spec)
    tokens = load_tokens(prompts_manifest, "train")
    with closing(learner.engine(tokens, learner.acting())) as engine:
        working = time.perf_counter()
        rollouts = distillation.generate_rollouts(engine, tokens, training, spec["seed"], spec["step"], share)
    cost = _generation_cost(spec["step"], rollouts, time.perf_counter() - working)
    ROLLOUTS.write(rollouts, out, segment.spec(**place), segment.parents, cost, started)
    say(f"done: {len(rollouts)} rollouts, {rollouts.completion_tokens} tokens")


def score_rollouts(
    spec: dict[str, Any], *, student: Path, teacher: Path, rollouts: Path, out: Path, device: torch.device
) -> None:
    """Score the rollouts of spec["step"], or a shard of them, with the teacher.

    Raises ArtifactError where the rollouts are not of that step, share, student and teacher.
    """
    started = time.time()
    training, teacher_manifest = spec["training"], read_manifest(teacher, "model")
    student_manifest, generated = read_manifest(student, "model"), read_manifest(rollouts, ROLLOUTS.name)
    place, _ = _place(spec)
    segment = _Segment({key: spec[key] for key in spec if key not in place}, generated.parents)
    own = {"student": student_manifest.fingerprint, "teacher": teacher_manifest.fingerprint}
    if generated.spec != segment.spec(**place) or not own.items() <= generated.parents.items():
        raise ArtifactError(f"{rollouts} are not the rollouts to score. Delete it and run the workflow again.")
    scorer = teacher_of(training, student.parent, teacher.parent, load_tokenizer(student.parent), device)
    working = time.perf_counter()
    scores = scorer.score(ROLLOUTS.open(generated))
    cost = _scoring_cost(spec["step"], scores, time.perf_counter() - working)
    SCORES.write(scores, out, segment.spec(**place), segment.scored(generated.fingerprint), cost, started)
    say(f"done: {scores.tokens} tokens scored")


def update_policy(
    spec: dict[str, Any],
    *,
    student: Path,
    teacher: Path,
    prompts: Path,
    state: Path,
    ledger: Path | None,
    rollouts: Sequence[Path],
    scores: Sequence[Path],
    out: Path,
    run_folder: Path,
    device: torch.device,
) -> None:
    """Do optimizer step spec["step"] on the rollouts and scores of its shards and write the state manifest `out`.

    Several shards are put together into the step's one artifact of each kind in `run_folder`. Under several ranks each
    works on its share of the batch, and the first writes.
    """
    started = time.time()
    training, step, point = spec["training"], spec["step"], Point.open(state, ledger)
    student_manifest = read_manifest(student, "model")
    _at(point, state, step - 1)
    segment = _Segment.of(
        spec, student_manifest, read_manifest(teacher, "model"), read_manifest(prompts, "prompts"), point
    )
    learner = Learner(spec, student_manifest, point, device)
    trainer = learner.trainer(spec["seed"])
    with exclusive(out.parent) if trainer.first else nullcontext():
        if trainer.first:
            _release_state_before(point)
        together = partial(put_together, trainer, segment.spec(step=step), len(rollouts))
        made, generation = together(ROLLOUTS, run_folder / f"rollouts/step{step}.json", segment.parents, rollouts)
        scored, scoring = together(
            SCORES, run_folder / f"scores/step{step}.json", segment.scored(segment.rollouts(step=step)), scores
        )
        rows: Rows = []
        costs: Rows = []
        if point.step > spec["start"]:
            rows = pd.read_parquet(point.manifest.file(METRICS)).to_dict("records")
            costs = list(point.manifest.recorded["cost"])
        costs += [*generation, *scoring]
        teacher_head = teacher_head_of(training, teacher.parent, learner.tokenizer, device)
        jump = learner.jump(trainer, teacher.parent, spec["seed"], rows)
        _update(learner, trainer, jump, made, scored, step, teacher_head, rows, costs)
        _write_state(out, segment, step, trainer, rows, costs, started)


def _release_state_before(point: Point) -> None:
    """Delete the weights of the state before a staged step's own start, unless it is a kept one.

    Everything made from it is complete: Snakemake starts no job before the last has ended.
    """
    if point.manifest.kind == "state" and point.step - 1 > point.manifest.spec["start"]:
        folder = point.manifest.path.parent.parent / str(point.step - 1)
        release(read_manifest(folder / point.manifest.path.name, "state"), [WEIGHTS, OPTIMIZER], "between kept states")


def _update(
    learner: Learner,
    trainer: Trainer,
    jump: Jump | None,
    rollouts: Rollouts,
    scores: Scores,
    step: int,
    teacher_head: Head | None,
    rows: Rows,
    costs: Rows,
) -> None:
    """One optimizer step, and perhaps a jump along it; metrics and costs are added to `rows` and `costs`."""
    working = time.perf_counter()
    facts = distillation.update_policy(trainer, rollouts, scores, learner.training, step, learner.pad_id, teacher_head)
    seconds = time.perf_counter() - working
    costs.append(cost_row("update policy", step, seconds, trained=rollouts.completion_tokens))
    if jump is not None:
        decided, cost = jump(rollouts, step)
        facts |= decided
        costs.append(cost)
    rows.append({"step": step, **facts})


def _write_state(
    out: Path,
    segment: _Segment,
    step: int,
    trainer: Trainer,
    rows: Rows,
    costs: Rows,
    started: float,
) -> None:
    """Write the state after `step`: weights, optimizer, and the metrics of the steps since the segment's start.

    For all ranks together; the first writes.
    """
    weights, optimizer = trainer.weights(), trainer.optimizer_state()
    if not trainer.first:
        return
    files = save_state(out.parent, weights, optimizer)
    files[METRICS] = out.parent / METRICS
    with atomic_path(files[METRICS]) as temporary:
        pd.DataFrame(rows).to_parquet(temporary, index=False)
    reverse_kl = rows[-1]["reverse_kl"]
    jump = {"coefficient": rows[-1]["coefficient"]} if "coefficient" in rows[-1] else {}
    write_manifest(
        out,
        kind="state",
        spec=segment.spec(end=step),
        parents=segment.parents,
        files=files,
        result={"step": step, "reverse_kl": reverse_kl, "optimizer_steps": optimizer.step, **jump},
        cost=costs,
        started=started,
    )
    say(f"done: reverse KL of the last step's rollouts {reverse_kl:.4f}")


def _generation_cost(step: int, rollouts: Rollouts, seconds: float) -> Rows:
    return [cost_row("generate rollouts", step, seconds, generated=rollouts.completion_tokens)]


def _scoring_cost(step: int, scores: Scores, seconds: float) -> Rows:
    return [cost_row("score rollouts", step, seconds, scored=scores.scored_tokens)]
