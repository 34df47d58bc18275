"""A segment: the on-policy distillation steps between two kept states, with warm engines (colocated execution).

Every step's rollouts and scores are written as artifacts before they are trained on, so a killed segment replays them
and regenerates nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd
import pyarrow as pa
import torch
from safetensors import SafetensorError

from effopd.distillation import generate_rollouts, update_policy
from effopd.engines.transformers_engine import TransformersEngine
from effopd.models import load_model, load_tokenizer, model_with, weights_of
from effopd.rollouts import Rollouts
from effopd.runtime.artifacts import atomic_path, fingerprint_of, read_manifest, write_manifest
from effopd.runtime.cost import cost_row
from effopd.runtime.errors import ArtifactError
from effopd.runtime.fingerprints import digest
from effopd.runtime.locks import exclusive
from effopd.runtime.progress import Progress, say
from effopd.scoring import LocalTeacher, Scores
from effopd.states import Point, save_state
from effopd.trainer import OptimizerSettings, Trainer
from effopd.verification import encode_prompts


def train_segment(
    spec: dict[str, Any],
    *,
    student: Path,
    teacher: Path,
    data: Path,
    state: Path,
    ledger: Path | None,
    out: Path,
    run_folder: Path,
    device: torch.device,
) -> None:
    """Train from the state (and ledger) at spec["start"] to spec["end"] and write the state manifest `out`.

    `student` and `teacher` are model manifests, `state` the student's for a first segment. Rollouts and scores go to
    `run_folder`. Raises ArtifactError where an input is not what it should be, DivergenceError where training breaks.
    """
    started = time.time()
    training, seed = spec["training"], spec["seed"]
    student_manifest, teacher_manifest = read_manifest(student, "model"), read_manifest(teacher, "model")
    data_manifest, point = read_manifest(data, "data"), Point.open(state, ledger)
    if point.step != spec["start"]:
        raise ArtifactError(f"{state} is at step {point.step} where the segment starts at step {spec['start']}.")
    parents = {
        "student": student_manifest.fingerprint,
        "teacher": teacher_manifest.fingerprint,
        "data": data_manifest.fingerprint,
        **point.parents,
    }
    fingerprint = fingerprint_of("state", spec, parents)
    model, tokenizer = model_with(student.parent, point.weights(), device), load_tokenizer(student.parent)
    pad_id, batch_size = int(tokenizer.pad_token_id), training["batch_size"]
    engine = TransformersEngine(model, eos_id=tokenizer.eos_token_id, pad_id=pad_id, batch_size=batch_size)
    scorer = LocalTeacher(load_model(teacher.parent, device), pad_id=pad_id, batch_size=batch_size)
    problems = pd.read_parquet(data_manifest.file("train.parquet"))["problem"].tolist()
    prompts = encode_prompts(tokenizer, problems)

    with exclusive(out.parent):
        trainer = Trainer(model, OptimizerSettings.of(training))
        if optimizer := point.optimizer():
            trainer.load_optimizer_state(optimizer)
        rows: list[dict[str, Any]] = []
        costs: list[dict[str, Any]] = []
        progress = Progress(f"steps {spec['start'] + 1}-{spec['end']}: step", spec["end"], done=spec["start"])
        for step in range(spec["start"] + 1, spec["end"] + 1):
            rollouts, generation_seconds = _cached(
                run_folder / f"rollouts/step{step}.parquet",
                digest([fingerprint, "rollouts", step]),
                Rollouts.read,
                partial(generate_rollouts, engine, prompts, training, seed, step),
            )
            scores, scoring_seconds = _cached(
                run_folder / f"scores/step{step}.safetensors",
                digest([fingerprint, "scores", step]),
                Scores.read,
                partial(scorer.score, rollouts),
            )
            update_started = time.perf_counter()
            facts = update_policy(trainer, rollouts, scores, training, step, pad_id)
            update_seconds = time.perf_counter() - update_started
            rows.append({"step": step, **facts})
            tokens = rollouts.completion_tokens
            costs += [
                cost_row("generate rollouts", step, generation_seconds, generated=tokens),
                cost_row("score rollouts", step, scoring_seconds, scored=tokens),
                cost_row("update policy", step, update_seconds, trained=tokens),
            ]
            progress.update(step, reverse_kl=facts["reverse_kl"])

        files = save_state(out.parent, weights_of(model), trainer.optimizer_state())
        files["metrics.parquet"] = out.parent / "metrics.parquet"
        with atomic_path(files["metrics.parquet"]) as temporary:
            pd.DataFrame(rows).to_parquet(temporary, index=False)
        write_manifest(
            out,
            kind="state",
            spec=spec,
            parents=parents,
            files=files,
            result={"step": spec["end"], "reverse_kl": rows[-1]["reverse_kl"]},
            cost=costs,
            started=started,
        )
    say(f"done: reverse KL of the last step's rollouts {rows[-1]['reverse_kl']:.4f}")


class _Artifact(Protocol):
    def write(self, path: Path, facts: dict[str, str]) -> None: ...


Made = TypeVar("Made", bound=_Artifact)


def _cached(
    path: Path, fingerprint: str, read: Callable[[Path], tuple[Made, dict[str, str]]], make: Callable[[], Made]
) -> tuple[Made, float]:
    """What `path` holds where its fingerprint is this one, else what `make` makes, written there first.

    Returns it with the seconds that making it took, when it was made.
    """
    try:
        held, facts = read(path)
        if facts.get("fingerprint") == fingerprint:
            return held, float(facts["seconds"])
    except (OSError, SafetensorError, pa.ArrowException):
        pass  # missing or cut short by a kill: make it (again)
    started = time.perf_counter()
    made = make()
    seconds = time.perf_counter() - started
    made.write(path, {"fingerprint": fingerprint, "seconds": f"{seconds:.4f}"})
    return made, seconds
