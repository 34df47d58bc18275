"""The interface of rollout engines, and the one place where they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.common.errors import ConfigError
from effopd.common.registry import load
from effopd.data.rollouts import Rollouts
from effopd.specs.engines import EngineSettings, Sampling


class RolloutEngine(Protocol):
    """Generates completions that end with the end-of-sequence token, or at the length limit.

    It is made of a model, whose weights it has from the start.
    """

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the weights of its model, and its own, in place. Raises ArtifactError if they do not fit."""

    def sync_weights(self) -> None:
        """Take up the weights that its model has by now. Nothing else does: call it after each update."""

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Rollouts:
        """One completion for each prompt (token ids); `seeds[i]` alone decides the randomness of completion i.

        Log-probs are those of the distribution sampled from; greedy decoding (temperature 0) reports them at
        temperature 1.
        """

    def close(self) -> None:
        """Free what it holds beside the model."""


def build_engine(
    settings: EngineSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    batch_size: int,
    context: int,
) -> RolloutEngine:
    """The engine of these settings.

    `batch_size` prompts make a fixed batch; `context` is the longest prompt with its completion, in tokens. Raises
    ConfigError if the engine is not installed, or the model cannot see as much.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and context > limit:
        raise ConfigError(
            f"config: prompts with completions of up to {context} tokens do not fit the {limit} that the model sees. "
            "Lower `max_new_tokens`, or keep long prompts out (`task.prompt.max_tokens`)."
        )
    engine: RolloutEngine = load("engines", settings.name).of(
        model,
        tokenizer,
        batch_size=batch_size,
        context=context,
        dtype=settings.dtype,
        **settings.options,
    )
    return engine


def longest_context(prompts: Sequence[Sequence[int]], max_new_tokens: int) -> int:
    """Tokens of the longest prompt with the longest completion."""
    return max(len(prompt) for prompt in prompts) + max_new_tokens
