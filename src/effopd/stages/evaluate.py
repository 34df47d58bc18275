"""Evaluation of a model or state on held-out problems: accuracy, and reverse KL to the teacher."""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path

import torch

from effopd.artifacts.manifests import atomic_path, read_manifest, write_manifest
from effopd.common.errors import named_for
from effopd.common.progress import say
from effopd.common.randomness import seed_of
from effopd.data.prompts import data_of, load_prompts, other_task
from effopd.engines.base import build_engine, longest_context
from effopd.evaluation.measure import measure
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
    The random numbers depend on the problem alone, so all states meet the same ones. Writes the manifest `out` and the
    per-item outcomes beside it.
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
    context = longest_context(asked.tokens, limit)
    with named_for(other_task(data_of(prompts_manifest))):
        engine = build_engine(spec.engine, model, tokenizer, batch_size=settings.batch_size, context=context)
    with closing(engine):
        measured = measure(
            engine,
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
        files={items.name: items},
        result=result,
        cost=measured.cost("evaluation", point.step),
        started=started,
    )
    say(f"done: accuracy {measured.accuracy:.3f}" + ("" if teacher is None else f", reverse KL {divergence:.4f}"))
