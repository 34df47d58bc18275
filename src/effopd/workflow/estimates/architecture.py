"""What a model's shape costs: parameters, arithmetic and cache, from the numbers in its configuration.

Light to import (no torch): the Snakefile reads it. Dense decoders with gated MLPs (Qwen, Llama, their kin); a mixture
of experts is taken for a dense one of the same width, which is too small.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effopd.common.errors import ArtifactError
from effopd.evaluation.flops import FORWARD
from effopd.models.checkpoint_files import read_object
from effopd.tasks.sources import is_local
from effopd.workflow.estimates.memory import BFLOAT16


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
    """The architecture of a model of the configuration; None if it is not known before the model is fetched.

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
    place = model.get("path", "")
    path = Path(place) / "config.json"
    if not is_local(place) or not path.is_file():
        return None
    return of_config(read_object(path), where=str(path))


def of_config(config: Mapping[str, Any], where: str = "config.json") -> Any:
    """The Architecture that a Hugging Face config.json describes; None if its family has other keys for it.

    Raises ArtifactError, naming the file `where`, if a value is impossible.
    """
    needed = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    optional = ("num_key_value_heads", "head_dim")
    if any(key not in config for key in needed):
        return None
    for key in (*needed, *(key for key in optional if config.get(key) is not None)):
        if type(config[key]) is not int or config[key] < 1:
            raise ArtifactError(f"{where}: `{key}` is {config[key]!r}, which is not a positive integer. Correct it.")
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
