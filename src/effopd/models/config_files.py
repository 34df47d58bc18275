"""What a model's config.json says that transformers would take, and that no model of this workflow can be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from effopd.common.errors import ArtifactError
from effopd.common.formatting import shortened
from effopd.models.checkpoint_files import read_object

MOST_LAYERS, MOST_EXPERTS = 10_000, 100_000  # one after the other is made
DTYPES = ("float32", "bfloat16", "float16", "float64", "float", "half", "double")
_LAYERS = re.compile(r"(?:(?:num|n)_(?:\w+_)?|(?:en|de)coder_)layers?")
_EXPERTS = re.compile(r"(?:num|n)_(?:\w+_)?experts")


def check_config(path: Path) -> None:
    """Raise ArtifactError, naming file, key and value, if a config.json says what no model here can have."""
    entry = read_object(path)
    parts = [entry, *(part for part in entry.values() if isinstance(part, dict))]
    if any(part.get("quantization_config") or part.get("compression_config") for part in parts):
        raise ArtifactError(
            f"{path} describes a quantized model, which cannot be trained or analyzed. Save it unquantized."
        )
    for key, value in _scalars(entry):
        name = key.rpartition(".")[2]
        most = MOST_LAYERS if _LAYERS.fullmatch(name) else MOST_EXPERTS if _EXPERTS.fullmatch(name) else math.inf
        if isinstance(value, int) and value > most:
            raise ArtifactError(f"{path}: `{key}` is {value}, which no model has. Correct it.")
        fits, wanted = _VALUES.get(name, (None, ""))
        if fits is not None and not fits(value):
            raise ArtifactError(f"{path}: `{key}` is {shortened(repr(value), 60)}, not {wanted}. Correct it.")
    if entry.get("transformers_weights") is not None:
        raise ArtifactError(
            f"{path} names its weights by `transformers_weights`, which other programs ignore. Name the file "
            "model.safetensors and delete the key."
        )


def check_generates(path: Path, model: PreTrainedModel) -> None:
    """Raise ArtifactError if the config.json `path` is of a model that was not made to write text.

    `model` is what transformers makes of it as a causal language model, which it does of encoders, too.
    """
    config = model.config
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not _sees_the_past_alone(config):
        raise ArtifactError(
            f"{path}: `model_type` is {config.model_type!r}, and `is_decoder` is not true: an encoder, which sees the "
            "tokens that it has to predict. Take a causal language model, or set `is_decoder` if it was trained as one."
        )
    names = config.architectures
    named = str(names[0]) if isinstance(names, list) and names else ""
    own: list[Any] = [MODEL_MAPPING_NAMES.get(config.model_type, "")]
    fitting = _flat([*own, *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()])
    if hasattr(getattr(transformers, named, None), "config_class") and named not in fitting:
        raise ArtifactError(
            f"{path}: `architectures` is {names}, which is no causal language model of the type {config.model_type!r}. "
            f"Take one that is, or correct the name, such as to {type(model).__name__}."
        )


def _sees_the_past_alone(config: PretrainedConfig) -> bool:
    return bool(getattr(config, "is_decoder", False) or getattr(config, "causal", False))  # the latter: XLM


def _flat(names: Iterable[str | tuple[str, ...]]) -> Iterator[str]:
    """The names of classes in a mapping of transformers, in which some kinds have several."""
    for one in names:
        yield from one if isinstance(one, tuple) else (one,)


def _scalars(entry: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration, of its language model and its rotary embeddings, with their keys; no lists."""
    for key, value in entry.items():
        if isinstance(value, dict) and (key == "text_config" or key.startswith("rope_")):
            yield from _scalars(value, f"{before}{key}.")
        elif value is not None and not isinstance(value, list | dict):
            yield f"{before}{key}", value


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _is_dtype(value: Any) -> bool:
    return value == "auto" or (isinstance(value, str) and value.removeprefix("torch.") in DTYPES)


_SIZE = _is_size, "a whole number above 0"
_POSITIVE = _is_positive, "a number above 0"
_DTYPE = _is_dtype, f"one of {', '.join(DTYPES)}"
# Which transformers takes as they come, or refuses with an error that names no key.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "vocab_size", "hidden_size", "num_attention_heads"), _SIZE
    ),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "rotary_emb_base"), _POSITIVE),
    **dict.fromkeys(("dtype", "torch_dtype"), _DTYPE),
}
