"""Evaluation of a model or state on held-out problems: accuracy, and reverse KL to the teacher."""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import torch

from effopd.artifacts.manifests import atomic_path, read_manifest, write_manifest
from effopd.common.errors import named_for
from effopd.common.progress import say
from effopd.common.randomness import seed_of
from effopd.data.prompts import data_of, load_prompts, other_task
from effopd.engines.base import build_engine, longest_context
from effopd.evaluation.kept_samples import RememberingEngine, chosen_positions, samples_of
from effopd.evaluation.measure import measure
from effopd.evaluation.sample_files import SUFFIX, write_samples
from effopd.models.lm_head import restricted
from effopd.models.models import dtype_of, load_frozen, load_tokenizer, model_with
from effopd.specs.engines import Sampling
from effopd.specs.evaluation import Evaluate
from effopd.tasks.base import build_task
from effopd.training.checkpoints import Point


def evaluate(
    spec: Evaluate,
    *,
    student: Path,
    teacher: Path | None,
    prompts: Path,
    state: Path,
    decision: Path | None,
    out: Path,
    device: torch.device,
) -> None:
    """Evaluate the weights from which training goes on after `state` (a model's manifest for a model itself).

    They are asked the problems of the split spec.evaluation["split"]; without a `teacher`, for their accuracy alone.
    The random numbers depend on the problem alone, so all states meet the same ones. Writes the manifest `out`, the
    per-item outcomes beside it and, of spec.evaluation["kept_samples"] problems, the first completion as text.
    """
    started = time.time()
    settings = spec.evaluation
    prompts_manifest, point = read_manifest(prompts, "prompts"), Point.open(state, decision)
    parents = {"prompts": prompts_manifest.fingerprint, **point.parents}
    if teacher is not None:
        parents["teacher"] = read_manifest(teacher, "model").fingerprint
    problems = load_prompts(prompts_manifest, settings.split)
    rows = [i for i in range(len(problems)) for _ in range(settings.samples)]
    seeds = [seed_of(settings.seed, "evaluation", position) for position in range(len(rows))]
    if settings.precision is None:  # a model itself
        model = load_frozen(state.parent, device)
    else:
        model = model_with(student.parent, point.weights(), device, dtype_of(settings.precision))
    tokenizer = load_tokenizer(student.parent)
    model = restricted(model, tokenizer)
    asked, limit = problems.select(rows), settings.max_new_tokens
    table = prompts_manifest.file(f"{settings.split}.parquet")
    of_split = pq.read_table(table, columns=["row"])["row"].to_pylist()  # the row in the data of each problem asked
    chosen = chosen_positions(settings.seed, of_split, settings.kept_samples)
    kept = [position * settings.samples for position in chosen]  # the first completion of each
    context = longest_context(asked.tokens, limit)
    with named_for(other_task(data_of(prompts_manifest))):
        engine = build_engine(spec.engine, model, tokenizer, batch_size=settings.batch_size, context=context)
    with closing(engine):
        remembering = RememberingEngine(engine, [seeds[position] for position in kept])
        measured = measure(
            remembering,
            build_task(spec.task),
            tokenizer,
            asked,
            seeds,
            Sampling(settings.temperature, limit),
            rows,
            student=model,
            teacher=None if teacher is None else load_frozen(teacher.parent, device),
            batch_size=settings.batch_size,
        )
    items = out.with_suffix(".items.parquet")
    with atomic_path(items) as temporary:
        measured.items.to_parquet(temporary, index=False)
    files, samples = {items.name: items}, out.with_suffix(SUFFIX)
    samples.unlink(missing_ok=True)  # of an evaluation that kept some where this one keeps none
    if kept:
        found = measured.items.iloc[kept]
        texts = samples_of(tokenizer, asked.select(kept), [of_split[i] for i in chosen], remembering.remembered, found)
        write_samples(samples, texts)
        files[samples.name] = samples
    divergence = math.nan if teacher is None else measured.reverse_kl
    result = {
        "step": point.step,
        "accuracy": measured.accuracy,
        "reverse_kl": divergence if math.isfinite(divergence) else None,
        "completions": len(measured.items),
        "completion_length": float(measured.items["tokens"].mean()),
        "finished": float(measured.items["finished"].mean()),
    }
    write_manifest(
        out,
        kind="evaluation",
        spec=spec.content,
        parents=parents,
        files=files,
        result=result,
        cost=measured.cost("evaluation", point.step),
        started=started,
    )
    say(f"done: accuracy {measured.accuracy:.3f}" + ("" if teacher is None else f", reverse KL {divergence:.4f}"))
