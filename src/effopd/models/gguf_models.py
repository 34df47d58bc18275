"""GGUF files as Hugging Face folders: dequantized once, by transformers' own reader."""

from __future__ import annotations

import importlib
import io
import json
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from effopd.common.errors import ArtifactError
from effopd.models.checkpoint_files import read_object, some
from effopd.models.gguf_header import GgufHeader, read_gguf_header
from effopd.models.hugging_face import quiet, reading
from effopd.models.models import without_weights

NEEDED = ("gguf", "accelerate")  # by transformers, which says so in several lines
REMEDY = "Take the model as safetensors."


def write_dequantized(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file to `folder` in float32, with its tokenizer, as `save_pretrained` does.

    Raises ArtifactError if the file is damaged, is one part of several, or holds what transformers would leave out or
    make up; ModuleNotFoundError where the extra `gguf` is not installed.
    """
    for package in NEEDED:
        importlib.import_module(package)
    from transformers import GgufConfig  # of newer versions of transformers than the core needs

    header = read_gguf_header(file)
    if (parts := header.values.get("split.count") or 1) != 1:
        raise ArtifactError(
            f"{file} is one of {parts} parts. Merge them (`llama-gguf-split --merge`) and name the result."
        )
    what = "a GGUF file of a causal language model that transformers reads"
    with tempfile.TemporaryDirectory() as alone:  # since transformers reads what lies beside the file, too
        link = Path(alone) / "model.gguf"
        link.symlink_to(file.absolute())
        place: dict[str, Any] = {
            "pretrained_model_name_or_path": alone, "gguf_file": link.name, "local_files_only": True
        }  # fmt: skip
        with reading(file, what):
            config: PretrainedConfig = AutoConfig.from_pretrained(**place)
            tokenizer: Any = AutoTokenizer.from_pretrained(**place)
        config.save_pretrained(folder)
        with reading(file, what), redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
            _check_whole(file, header, config, without_weights(folder, trust=False))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **place,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),  # else it is not saved
                output_loading_info=True,
            )
        model, info = loaded
        _check_loaded(file, info)
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    _drop_added_tokens(folder / "tokenizer.json", header.values.get("tokenizer.ggml.tokens", 0))


def _drop_added_tokens(path: Path, tokens: int) -> None:
    """Keep the file's `tokens` alone: transformers may add the special token of a class, for which there is no row."""
    entry = read_object(path)
    entry["added_tokens"] = [token for token in entry["added_tokens"] if token["id"] < tokens]
    path.write_text(json.dumps(entry, ensure_ascii=False, indent=2), encoding="utf-8")


def _check_whole(file: Path, header: GgufHeader, config: PretrainedConfig, model: PreTrainedModel) -> None:
    """Raise ArtifactError unless all that the file says of a model is in `model`, its architecture without storage.

    transformers passes over tensors that it has no place for, and over scaled rotary positions.
    """
    scaling = header.values.get(f"{header.architecture}.rope.scaling.type", "none")
    if scaling != "none" and not _scales_positions(config):
        raise ArtifactError(
            f"{file} scales rotary positions ({header.architecture}.rope.scaling.type is {scaling!r}), which "
            f"transformers does not read from a GGUF file. {REMEDY}"
        )
    expected = sum(parameter.numel() for parameter in model.parameters())
    if header.elements != expected:
        factors = ", among them rope_freqs.weight, which scales rotary positions" * (
            "rope_freqs.weight" in header.shapes
        )
        raise ArtifactError(
            f"{file} holds {header.elements:,} numbers{factors}, and the {type(model).__name__} that transformers "
            f"makes of it {expected:,}: it would not be the same model. {REMEDY}"
        )


def _scales_positions(config: PretrainedConfig) -> bool:
    found: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [part.get("rope_type") for part in (found, *found.values()) if isinstance(part, dict)]
    return any(kind not in (None, "default") for kind in kinds)


def _check_loaded(file: Path, info: Mapping[str, Any]) -> None:
    """Raise ArtifactError if transformers made weights up, or could not place some."""
    odd = {word: sorted(map(str, info[f"{word}_keys"])) for word in ("missing", "unexpected", "mismatched")}
    if found := [f"{word}: {some(names)}" for word, names in odd.items() if names]:
        raise ArtifactError(
            f"{file} does not hold the weights that its header describes ({'; '.join(found)}). {REMEDY}"
        )
