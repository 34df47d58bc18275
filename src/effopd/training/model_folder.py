"""What the stages that make a model share: training into a Hugging Face folder, and resuming a killed attempt."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.artifacts.folders import check_own, empty
from effopd.artifacts.locks import exclusive
from effopd.artifacts.manifests import atomic_path, fingerprint_of, read_manifest, write_manifest
from effopd.common.progress import Progress, say
from effopd.models.models import Weights, load_tensors, save_model, save_tensors
from effopd.specs.models import TrainedSettings
from effopd.training.early_stopping import BEST, METRIC, EarlyStopping, best_step
from effopd.training.resume import ResumableTraining, ResumePoint
from effopd.training.trainer import Trainer, TrainerSettings

RESUME, RESUME_EVERY_SECONDS = "resume.safetensors", 10.0


def train_into_folder(
    out: Path,
    *,
    spec: Mapping[str, Any],
    settings: TrainedSettings,
    parents: dict[str, str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    train_step: Callable[[Trainer, int], dict[str, float]],
    checkpoints: Collection[int],
    what: str,
    shown: Sequence[str],
    aside: Collection[str] = (),
    stopping: EarlyStopping | None = None,
    trainer_of: Callable[[PreTrainedModel, TrainerSettings], Trainer] = Trainer,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Train a model as `settings` say and write it as a Hugging Face folder with the manifest `out`, of this `spec`.

    `train_step(trainer, step)` does one step (from 1) and returns its metrics, which go to training.parquet; those
    named in `shown` are said on the way. After the steps in `checkpoints` the weights are kept as
    checkpoints/step<n>.safetensors. Parameters named in `aside` are trained with the model and saved nowhere but in
    resume points. With `stopping` the model is that of the best evaluated step, training may end before its last step,
    and result["steps"] is the step that was taken. A killed attempt goes on from the last resume point, a few seconds
    back, to bitwise the same model. Under several ranks the first writes. `trainer_of` makes what trains the model;
    `facts` go to the manifest's result.
    """
    started = time.time()
    folder, steps = out.parent, settings.steps
    check_own(folder)
    best = folder / BEST  # a file for each step that was the best so far, until a resume point knows it
    config = model.config
    trainer = trainer_of(model, TrainerSettings.of(settings))
    with exclusive(folder) if trainer.first else nullcontext():
        fingerprint = fingerprint_of("model", spec, parents)
        finished = trainer.first and out.is_file() and read_manifest(out, "model").fingerprint == fingerprint
        if trainer.broadcast(finished):  # by a job that outlived its killed workflow, while this one waited
            say(f"{what}: finished meanwhile")
            return
        resume = ResumableTraining(ResumePoint(folder / RESUME, fingerprint), trainer, RESUME_EVERY_SECONDS)
        rows: list[dict[str, Any]] = resume.load() or []
        if trainer.first:  # of another model that was here before
            empty(folder, keep=(RESUME, "checkpoints", BEST) if rows else ())
        if rows:
            say(f"{what}: going on after step {len(rows)}")
        progress = Progress(what, steps, done=len(rows))
        for step in range(len(rows) + 1, steps + 1):
            metrics = train_step(trainer, step)
            if stopping and stopping.due(step):
                metrics[METRIC] = stopping.evaluate(trainer)
            rows.append({"step": step, **metrics})
            places = [folder / f"checkpoints/step{step}.safetensors"] if step in checkpoints else []
            places += [best / f"step{step}.safetensors"] if METRIC in metrics and best_step(rows) == step else []
            if places:
                weights = _without(trainer.weights(borrowed=True), aside)
                for place in places if trainer.first else ():
                    save_tensors(place, weights)
            if trainer.first:
                progress.update(step, **{name: metrics[name] for name in (*shown, METRIC) if name in metrics})
            if stopping and stopping.over(rows):
                if trainer.first:
                    say(f"{what}: {stopping.patience} evaluations without gain, stopped after step {step}")
                break
            if step < steps and resume.save_if_due(rows) and trainer.first:
                for outdone in {*best.glob("*")} - {best / f"step{best_step(rows)}.safetensors"}:
                    outdone.unlink()
        weights = _without(trainer.weights(borrowed=True), aside)
        if not trainer.first:
            return
        taken = best_step(rows)
        if taken < len(rows):
            weights = load_tensors(best / f"step{taken}.safetensors")
        save_model(config, weights, tokenizer, folder)
        with atomic_path(folder / "training.parquet") as temporary:
            pd.DataFrame(rows).to_parquet(temporary, index=False)
        own = {path.name: path for path in sorted(folder.glob("[!.]*.*")) if path not in (out, folder / RESUME)}
        for step in (step for step in checkpoints if taken < step <= len(rows)):
            (folder / f"checkpoints/step{step}.safetensors").unlink(missing_ok=True)
        kept = [f"checkpoints/step{step}.safetensors" for step in sorted(checkpoints) if step <= taken]
        files = own | {name: folder / name for name in kept}
        result = {
            **(facts or {}),
            "steps": taken,
            "parameters": sum(tensor.numel() for tensor in weights.values()),
            "last_step": rows[taken - 1],
        }
        write_manifest(out, kind="model", spec=spec, parents=parents, files=files, result=result, started=started)
        resume.discard()
        shutil.rmtree(best, ignore_errors=True)
        end = rows[taken - 1]
        say(
            "done: "
            + ", ".join(f"{name} {end[name]:.3f}" for name in (*shown, METRIC) if name in end)
            + f" after {taken} steps"
        )


def _without(weights: Weights, names: Collection[str]) -> Weights:
    return {name: tensor for name, tensor in weights.items() if name not in names}
