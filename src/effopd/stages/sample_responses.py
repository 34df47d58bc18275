"""Samples of a model's answers to training problems, judged: what another model may learn (docs/sft.md)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from effopd.artifacts.locks import exclusive
from effopd.artifacts.manifests import atomic_path, fingerprint_of, read_manifest, write_manifest
from effopd.common.errors import ConfigError
from effopd.common.progress import Progress, say
from effopd.common.randomness import generator, seed_of
from effopd.data.prompts import Prompts, load_prompts
from effopd.data.responses import PARTS, SAMPLES, prompt_rows
from effopd.data.verification import completion_texts, verify_rollouts
from effopd.engines.base import build_engine, longest_context
from effopd.models.lm_head import restricted
from effopd.models.models import load_frozen, load_tokenizer
from effopd.specs.engines import Sampling
from effopd.specs.models import SampleResponses
from effopd.tasks.base import build_task

BATCHES_A_PART = 8
SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # of the problem, in the training split
        ("sample", pa.int32()),  # from 0, of the same problem
        ("problem", pa.string()),
        ("prompt", pa.list_(pa.int32())),
        ("tokens", pa.list_(pa.int32())),  # of the completion, with the end-of-sequence token where finished
        ("completion", pa.string()),  # without it
        ("finished", pa.bool_()),
        ("reward", pa.float32()),
        ("reason", pa.string()),
    ]
)


def sample_responses(spec: SampleResponses, prompts: Path, model: Path, out: Path, device: torch.device) -> None:
    """Sample the model of the manifest `model` on training problems and write a row a sample beside the manifest `out`.

    What a sample is depends on its problem's row and its number alone. A killed attempt goes on after the last part
    that it wrote.
    """
    started = time.time()
    settings, folder = spec.sampling, out.parent
    samples, seed, size = settings.samples, settings.seed, settings.batch_size
    sampling = Sampling(settings.temperature, settings.max_new_tokens)
    task = build_task(spec.task)
    prompts_manifest, model_manifest = read_manifest(prompts, "prompts"), read_manifest(model, "model")
    parents = {"prompts": prompts_manifest.fingerprint, "model": model_manifest.fingerprint}
    fingerprint = fingerprint_of("samples", spec.content, parents)
    training, rows = load_prompts(prompts_manifest, "train"), prompt_rows(prompts_manifest)
    chosen = _chosen(settings.problems, len(training), seed)
    asked = [(position, sample) for position in chosen for sample in range(samples)]
    parts = [asked[start : start + BATCHES_A_PART * size] for start in range(0, len(asked), BATCHES_A_PART * size)]
    with exclusive(folder):
        if out.is_file() and read_manifest(out, "samples").fingerprint == fingerprint:
            say("finished meanwhile")  # by a job that outlived its killed workflow
            return
        paths = [folder / PARTS / f"{fingerprint}-{number}.parquet" for number in range(len(parts))]
        for other in {*(folder / PARTS).glob("*")} - {*paths}:  # of samples that were begun with other settings
            other.unlink()
        tables = {path: table for path in paths if (table := _held(path)) is not None}
        progress = Progress("part", len(parts), done=len(tables))
        if len(tables) < len(parts):
            tokenizer = load_tokenizer(model.parent)
            policy = restricted(load_frozen(model.parent, device), tokenizer)
            context = longest_context(training.select(chosen).tokens, sampling.max_new_tokens)
            with closing(build_engine(spec.engine, policy, tokenizer, batch_size=size, context=context)) as engine:
                for path, part in zip(paths, parts, strict=True):
                    if path in tables:
                        continue
                    problems = training.select([position for position, _ in part])
                    seeds = [seed_of(seed, "response", rows[position], sample) for position, sample in part]
                    rollouts = engine.generate(problems.tokens, seeds, sampling)
                    judged = verify_rollouts(task, tokenizer, problems.problems, rollouts)
                    texts = completion_texts(tokenizer, rollouts)
                    tables[path] = _table([(rows[p], s) for p, s in part], problems, rollouts, texts, judged)
                    with atomic_path(path) as temporary:
                        pq.write_table(tables[path], temporary, compression="zstd")
                    progress.update(len(tables), accepted=_mean(tables[path]["reward"]))
        # the same bytes however it was cut, and whichever parts were read
        whole = pa.concat_tables([tables[path] for path in paths]).cast(SCHEMA).combine_chunks()
        file = folder / SAMPLES
        with atomic_path(file) as temporary:
            pq.write_table(whole, temporary, compression="zstd")
        accepted = whole.filter(pc.greater_equal(whole["reward"], 1.0))
        result = {
            "problems": len(chosen),
            "samples": len(whole),
            "accepted": len(accepted),
            "solved_problems": len(pc.unique(accepted["row"])),
            "finished": pc.sum(whole["finished"]).as_py(),
            "generated_tokens": pc.sum(pc.list_value_length(whole["tokens"])).as_py(),
        }
        write_manifest(
            out,
            kind="samples",
            spec=spec.content,
            parents=parents,
            files={SAMPLES: file},
            result=result,
            started=started,
        )
        shutil.rmtree(folder / PARTS, ignore_errors=True)
    say(
        f"done: {result['accepted']} of {result['samples']} samples accepted, of {result['solved_problems']} of "
        f"{result['problems']} problems"
    )


def _chosen(problems: int | None, there: int, seed: int) -> list[int]:
    """The positions of the prompts that are asked, in order. Raises ConfigError if there are too few."""
    if problems is None:
        return list(range(there))
    if problems > there:
        raise ConfigError(
            f"config: `sampling.problems` of a model is {problems}, and there are {there} training prompts. Lower it, "
            "or leave it out."
        )
    return sorted(generator(seed, "sampled problems").choice(there, problems, replace=False).tolist())


def _held(path: Path) -> pa.Table | None:
    """A part that is done, if it can be read."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(SCHEMA) else None


def _table(
    places: Sequence[tuple[int, int]], problems: Prompts, rollouts: Any, texts: Sequence[str], judged: dict[str, Any]
) -> pa.Table:
    """Samples as a table; `places` are the row and the number of each."""
    return pa.table(
        {
            "row": [row for row, _ in places],
            "sample": [sample for _, sample in places],
            "problem": [problem.text for problem in problems.problems],
            "prompt": rollouts.prompts,
            "tokens": rollouts.completions,
            "completion": texts,
            "finished": rollouts.finished,
            **judged,
        },
        schema=SCHEMA,
    )


def _mean(column: pa.ChunkedArray) -> float:
    return float(pc.mean(column).as_py())
