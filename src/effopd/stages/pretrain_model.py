"""The base model: a small Qwen3-shaped language model, trained from scratch on the task's corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from effopd.artifacts.manifests import read_manifest
from effopd.common.randomness import epoch_order, seed_of
from effopd.data.batching import passes_of
from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.data.verification import encode_prompts
from effopd.losses.divergences import negative_log_likelihood, token_logprobs
from effopd.models.models import special_ids
from effopd.specs.models import PretrainingSettings, PretrainModel
from effopd.tasks.base import build_task
from effopd.training.decay import decayed
from effopd.training.model_folder import train_into_folder
from effopd.training.trainer import Trainer, warmed_up


def pretrain_model(spec: PretrainModel, data: Path, out: Path, device: torch.device) -> None:
    """Train spec.model on the corpus of the data manifest and write it beside the manifest `out`."""
    settings, corpus_manifest = spec.model, read_manifest(data, "data")
    tokenizer = build_task(spec.task).make_tokenizer()
    corpus = pd.read_parquet(corpus_manifest.file("corpus.parquet"))
    prompts = encode_prompts(tokenizer, corpus["prompt"].tolist())
    eos_id, pad_id = special_ids(tokenizer)
    completions = [[*ids, eos_id] for ids in encode_prompts(tokenizer, corpus["completion"].tolist())]
    longest = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True))
    model = _new_model(settings, tokenizer, positions=4 * longest)
    model.to(device)  # type: ignore[arg-type]  # (its wrapper hides the signature)

    def train_step(trainer: Trainer, step: int) -> dict[str, float]:
        size = settings.batch_size
        rows = epoch_order(settings.seed, "pretraining order", len(prompts), (step - 1) * size, size)
        total = sum(len(completions[i]) for i in rows)
        shard = trainer.shard_of(rows)
        text = Rollouts(
            prompts=[prompts[i] for i in shard],
            completions=[completions[i] for i in shard],
            logprobs=[np.zeros(len(completions[i]), np.float32) for i in shard],
            finished=[True] * len(shard),
        )
        passes = passes_of(text.lengths, settings.micro_batch or size)
        batches = [PaddedBatch.of(text.select(chosen), pad_id, device) for chosen in passes]
        lr = warmed_up(settings.lr, step, settings.warmup_steps) * decayed("cosine", step, settings.steps)
        facts, _ = trainer.step(batches, lambda m, b: (_loss(m, b, total), {}), lr)
        return facts

    train_into_folder(
        out,
        spec=spec.content,
        settings=settings,
        parents={"data": corpus_manifest.fingerprint},
        model=model,
        tokenizer=tokenizer,
        train_step=train_step,
        checkpoints=(),
        what="pretraining step",
        shown=("loss",),
    )


def _loss(model: PreTrainedModel, batch: PaddedBatch, total_tokens: int) -> torch.Tensor:
    logits = model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[batch.mask]
    return negative_log_likelihood(token_logprobs(logits, batch.targets[batch.mask]), total_tokens)


def _new_model(settings: PretrainingSettings, tokenizer: Any, positions: int) -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.head_dim,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        initializer_range=settings.initial_deviation,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(seed_of(settings.seed, "initial weights"))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
