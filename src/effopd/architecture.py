"""What a model's shape costs: parameters, arithmetic and cache, from the numbers in its configuration.

Light to import (no torch): the Snakefile reads it. Dense decoders with gated MLPs (Qwen, Llama, their kin); a mixture
of experts is taken for a dense one of the same width, which is too small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effopd.flops import FORWARD
from effopd.sizes import BFLOAT16
from effopd.tasks.sources import is_local


@dataclass(frozen=True)
class Architecture:
    """The shape of a decoder."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # whether the embedding is the output matrix too

    @property
    def matrices(self) -> float:
        """Parameters that each token is multiplied by: attention, MLP and output matrix."""
        attention = self.hidden_size * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.layers * (attention + mlp) + self.vocabulary * self.hidden_size

    @property
    def parameters(self) -> float:
        """All parameters but norms and biases, which are less than a thousandth."""
        return self.matrices + (0 if self.tied else self.vocabulary * self.hidden_size)

    def lora_factors(self, rank: int) -> float:
        """Numbers in LoRA's factors, with adapters at every projection."""
        attention = 4 * self.hidden_size + 2 * self.head_dim * (self.heads + self.kv_heads)
        mlp = 3 * (self.hidden_size + self.intermediate_size)
        return rank * self.layers * (attention + mlp)

    def forward_flops(self, length: float) -> float:
        """Arithmetic of a token's forward pass in a sequence of `length` tokens: 2 a parameter, and attention."""
        return FORWARD * self.matrices + FORWARD * self.layers * self.heads * self.head_dim * length

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token, in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BFLOAT16


def architecture_of(models: Mapping[str, Any], name: str, vocabulary: int, given: Mapping[str, Any]) -> Any:
    """The architecture of a model of the configuration; None where it is not known before the model is fetched.

    `vocabulary` is that of models trained from scratch, `given` are the shapes in `estimate.architectures`.
    """
    model = models[name]
    if name in given:
        return Architecture(**given[name])
    if "init" in model:
        return architecture_of(models, model["init"], vocabulary, given)
    if model["kind"] == "pretrain":
        shape = {
            key: model[key] for key in ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim")
        }
        return Architecture(**shape, vocabulary=vocabulary, tied=False)
    path = Path(model["path"]) / "config.json"
    if is_local(model["path"]) and path.is_file():
        return of_config(json.loads(path.read_text(encoding="utf-8")))
    return None


def of_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a Hugging Face config.json describes."""
    heads = config["num_attention_heads"]
    return Architecture(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocabulary=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", True)),
    )
