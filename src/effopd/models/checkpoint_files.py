"""Checkpoints on disk: which files hold a model's weights, and what the headers of those files say.

One set of rules for training, analyses and extrapolation. If programs that load a folder (transformers, vLLM) could
disagree about its weights, it is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from effopd.common.errors import ArtifactError
from effopd.models.gguf_header import is_gguf

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Weights that a run keeps: of a state, of an accepted candidate, of a prediction (effopd.training.checkpoints).
OWN, OWN_MANIFESTS = "weights.safetensors", ("state.json", "decision.json", "prediction.json")
FLOATS = ("F64", "F32", "F16", "BF16")
REMEDY = "Download or save the checkpoint again."

# Saved by some versions of transformers: tables of rotary embeddings, positions and causal masks.
_BUFFER = re.compile(r"rotary_emb\.|\.masked_bias$|(?:^|\.)position_ids$")
_MASK = re.compile(r"\.(?:attn|attention)\.bias$")


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and what it is."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it


def stored_tensors(path: Path) -> dict[str, Stored]:
    """The weights of a folder of safetensors (one file, or shards with their index), or of one safetensors file.

    Only headers are read. Buffers, which are computed from the configuration, are left out. Raises ArtifactError if
    the folder or file is not that, is damaged or quantized, or if its index and its files disagree.
    """
    files, index = _files(path)
    headers = {file: _header(file) for file in files}
    if index is not None:
        _check_index(path, index, headers)
    tensors = {name: stored for header in headers.values() for name, stored in header.items()}
    weights = {name: stored for name, stored in tensors.items() if not is_buffer(stored)}
    if odd := sorted(name for name, stored in weights.items() if stored.dtype not in FLOATS):
        raise ArtifactError(
            f"{path}: {odd[0]} is stored as {weights[odd[0]].dtype}. Only F64, F32, F16 and BF16 weights can be "
            "trained or analyzed: save the model unquantized."
        )
    if not weights:
        raise ArtifactError(f"{path} holds no weights. {REMEDY}")
    return weights


def weight_files(path: Path) -> list[Path]:
    """The files that `stored_tensors` reads. Raises ArtifactError as it does."""
    return _files(path)[0]


def is_buffer(stored: Stored) -> bool:
    """Whether a tensor is a buffer, not a parameter, judged by its name, type and shape."""
    flags = stored.dtype in ("BOOL", "I64") and not stored.name.endswith((".weight", ".bias"))
    mask = len(stored.shape) == 4 and _MASK.search(stored.name) is not None
    return flags or mask or _BUFFER.search(stored.name) is not None


def read_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file of a checkpoint that holds an object. Raises ArtifactError if it does not."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_nan)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). {REMEDY}") from None
    if not isinstance(entry, dict):
        raise ArtifactError(f"{path} is damaged (a {type(entry).__name__}, not an object). {REMEDY}")
    return entry


def check_permission(file: Path) -> None:
    """Raise PermissionError if a file may not be read, of which safetensors says that it does not exist."""
    try:
        file.open("rb").close()
    except PermissionError:
        raise
    except OSError:
        pass  # to be said by what reads it


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files with the weights, and which tensors their index says each one holds."""
    if path.is_file() and path.suffix == ".safetensors":
        return [path], None
    if (path / OWN).is_file() and any((path / name).is_file() for name in OWN_MANIFESTS):
        return [path / OWN], None
    single, index = path / SINGLE, path / INDEX
    if os.path.lexists(path / ADAPTER):
        raise ArtifactError(
            f"{path} holds an adapter ({ADAPTER}), which belongs to another model. Merge it "
            "(`merge_and_unload`), save the result in a folder of its own and give that."
        )
    if single.is_file() and index.is_file():
        raise ArtifactError(
            f"{path} holds both {SINGLE} and {INDEX}. transformers loads the first, other programs the second: delete "
            "whichever is out of date."
        )
    if single.is_file():
        return [single], None
    if index.is_file():
        placed = _weight_map(index)
        files = [path / name for name in sorted(set(placed.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise ArtifactError(f"{path} lacks {some(missing)}, which its index names. {REMEDY}")
        return files, placed
    if is_gguf(path) or (path.is_dir() and any(map(is_gguf, path.iterdir()))):
        raise ArtifactError(
            f"{path} is or holds a GGUF file, which is not read here. Take the model as safetensors: the workflow "
            "makes such a folder of a GGUF file (`kind: pretrained`, docs/models.md)."
        )
    pickled = "" if not list(path.glob("*.bin")) else " Pickled weights (*.bin) are not read: save it as safetensors."
    raise ArtifactError(f"{path} is no folder with {SINGLE} or {INDEX}, and no safetensors file.{pickled}")


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor names to file names. Raises ArtifactError unless all files are plain names of safetensors files."""
    entry = read_object(index)
    placed = entry.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ArtifactError(f"{index} is damaged (it has no `weight_map`). {REMEDY}")
    if not isinstance(entry.get("metadata"), dict):
        raise ArtifactError(f'{index} has no `metadata`, without which it cannot be loaded. Add `"metadata": {{}}`.')
    for name, file in placed.items():
        if not isinstance(file, str) or not _is_plain(file):
            raise ArtifactError(
                f"{index}: `weight_map` says that {name} is in {file!r}, which is not the plain name of a .safetensors "
                f"file in this folder. {REMEDY}"
            )
    return placed


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[^/\\\0]+\.safetensors", name) is not None and len(name.encode()) < 256


def _header(file: Path) -> dict[str, Stored]:
    found = {}
    check_permission(file)
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - it is not a mapping
                piece = handle.get_slice(name)
                found[name] = Stored(name, file, tuple(piece.get_shape()), piece.get_dtype())
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{file} cannot be read ({error}). {REMEDY}") from None
    return found


def _check_index(path: Path, placed: dict[str, str], headers: dict[Path, dict[str, Stored]]) -> None:
    """Raise ArtifactError unless every file holds exactly the weights that the index says it holds."""
    held = {file.name: header for file, header in headers.items()}
    for name, file in placed.items():
        if name not in held[file] and not _BUFFER.search(name) and not _MASK.search(name):
            raise ArtifactError(f"{path}: the index says that {name} is in {file}, which lacks it. {REMEDY}")
    for file, header in held.items():
        for name, stored in header.items():
            if placed.get(name) != file and not is_buffer(stored):
                where = f"places in {placed[name]}" if name in placed else "does not list"
                raise ArtifactError(f"{path}: {file} holds {name}, which the index {where}. {REMEDY}")


def _no_nan(constant: str) -> float:
    if constant == "NaN":
        raise ValueError("NaN is not a number that JSON allows")
    return float(constant)
