"""Prompts: the problems of every split as a model's tokenizer sees them, as parquet files."""

from __future__ import annotations

import time
from pathlib import Path

from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.common.errors import UserError, named_for
from effopd.common.progress import say
from effopd.data.prompts import load_problems, other_task, tokenize_problems, write_tokens
from effopd.models.models import load_tokenizer
from effopd.specs.data import TokenizePrompts

SPLITS = ("train", "validation", "test")


def tokenize_prompts(spec: TokenizePrompts, data: Path, model: Path, out: Path) -> None:
    """Write, beside the manifest `out`, a table for each split: `row` (in the split's data) and `tokens`.

    Prompts longer than `task.prompt.max_tokens` are left out. Raises UserError if a split has none left.
    """
    started = time.time()
    data_manifest, model_manifest = read_manifest(data, "data"), read_manifest(model, "model")
    tokenizer, settings = load_tokenizer(model.parent), spec.prompt
    files, facts = {}, {}
    for split in (name for name in SPLITS if f"{name}.parquet" in data_manifest.files):
        problems = [problem.text for problem in load_problems(data_manifest, split)]
        with named_for(other_task(data_manifest)):
            prompts = tokenize_problems(tokenizer, problems, settings)
            longest = settings["max_tokens"] if settings else max(map(len, prompts))
            kept = [row for row, tokens in enumerate(prompts) if 0 < len(tokens) <= longest]
            if not kept:
                raise UserError(
                    f"every prompt of the {split} split is longer than {longest} tokens. Raise "
                    "`task.prompt.max_tokens`."
                )
        files[f"{split}.parquet"] = out.parent / f"{split}.parquet"
        write_tokens(files[f"{split}.parquet"], prompts, kept)
        lengths = [len(prompts[row]) for row in kept]
        facts[split] = {
            "prompts": len(kept),
            "too_long": len(prompts) - len(kept),
            "tokens": sum(lengths),
            "longest": max(lengths),
        }
    write_manifest(
        out,
        kind="prompts",
        spec=spec.content,
        parents={"data": data_manifest.fingerprint, "model": model_manifest.fingerprint},
        files=files,
        result=facts,
        started=started,
    )
    counts = (f"{fact['prompts']} {split} ({fact['too_long']} too long)" for split, fact in facts.items())
    say(f"done: {', '.join(counts)} prompts")
