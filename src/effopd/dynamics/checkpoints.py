"""Checkpoints as streams of parameters: Hugging Face folders and safetensors files, read piece by piece."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from effopd.runtime.errors import UserError
from effopd.runtime.fingerprints import digest

INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
BLOCK_ELEMENTS = 2**24  # of a matrix whose spectrum is not asked for, read at a time
FLOATS = ("F64", "F32", "F16", "BF16")

ATTENTION = frozenset({"q", "k", "v", "o", "qkv"})
MLP = frozenset({"gate", "up", "down", "gate_up"})
_BUFFERS = re.compile(r"rotary_emb\.|\.masked_bias$|\.attn\.bias$")  # saved by old versions; no parameters
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_MODULES = tuple(
    (re.compile(pattern), module)
    for pattern, module in (
        (r"\.bias$", "bias"),
        (r"norm", "norm"),
        (r"(?:^|\.)lm_head\.", "lm_head"),
        (r"embed_tokens\.|\.wte\.|(?:^|\.)embeddings?\.", "embedding"),
        (r"\.qkv_proj\.", "qkv"),
        (r"\.([qkvo])_proj\.", ""),
        (r"\.gate_up_proj(?:\.|$)", "gate_up"),
        (r"\.(gate|up|down)_proj(?:\.|$)", ""),
        (r"\.w1\.", "gate"),  # Mixtral's experts
        (r"\.w3\.", "up"),
        (r"\.w2\.", "down"),
        (r"\.(?:gate|router)\.", "router"),
    )
)


def parameter_place(name: str) -> tuple[int | None, str]:
    """The layer (None outside layers) and module type of a parameter, from its name.

    The type is q, k, v, o, gate, up, down, norm, bias, router, embedding or lm_head, qkv or gate_up where a model fuses
    them, or "other". Experts have their layer and module like any MLP; which expert it is only its name says.
    """
    layer = _LAYER.search(name)
    module = "other"
    for pattern, found in _MODULES:
        if match := pattern.search(name):
            module = found or match.group(1)
            break
    return int(layer.group(1)) if layer else None, module


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and what it is."""

    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it


@dataclass(frozen=True)
class Parameter:
    """A parameter that all checkpoints of an analysis have."""

    name: str
    shape: tuple[int, ...]
    layer: int | None
    module: str

    @property
    def is_projection(self) -> bool:
        """Whether it is an attention or MLP matrix: those whose spectra the paper looks at."""
        return len(self.shape) == 2 and self.module in ATTENTION | MLP


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model on disk. Only their headers are read until a tensor is asked for."""

    path: Path
    tensors: dict[str, Stored]

    @staticmethod
    def open(path: Path) -> Checkpoint:
        """A Hugging Face folder of safetensors (one file, or shards with their index), or one safetensors file.

        Raises UserError where it is not that, is damaged, or is quantised.
        """
        tensors: dict[str, Stored] = {}
        for file in _files(path):
            try:
                with safe_open(file, framework="pt") as handle:
                    for name in handle.keys():  # noqa: SIM118 - it is no mapping
                        piece = handle.get_slice(name)
                        tensors[name] = Stored(file, tuple(piece.get_shape()), piece.get_dtype())
            except (OSError, SafetensorError) as error:
                raise UserError(f"{file} cannot be read ({error}). Download or save the checkpoint again.") from None
        tensors = {name: stored for name, stored in tensors.items() if not _BUFFERS.search(name)}
        if odd := [name for name, stored in tensors.items() if stored.dtype not in FLOATS]:
            raise UserError(
                f"{path}: {odd[0]} is stored as {tensors[odd[0]].dtype}. Only F64, F32, F16 and BF16 weights can be "
                "analysed: save the model unquantised."
            )
        if _ties_embeddings(path):
            tensors.pop(HEAD, None)
        return Checkpoint(path, tensors)

    @property
    def fingerprint(self) -> str:
        """Digest of the files' names, sizes and times of change, not of their contents: those may be huge."""
        files = {stored.file for stored in self.tensors.values()}
        return digest(sorted([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files))

    def locate(self, name: str) -> str | None:
        """The tensor that serves as parameter `name`: the embedding as the head of a model that ties them."""
        if name in self.tensors:
            return name
        if name == HEAD:
            return next((other for other in self.tensors if parameter_place(other)[1] == "embedding"), None)
        return None

    def read(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Rows of a parameter as stored. The file is mapped only meanwhile, so that nothing of it stays in memory."""
        located = self.locate(name)
        assert located is not None
        stored = self.tensors[located]
        with safe_open(stored.file, framework="pt") as handle:
            tensor: torch.Tensor = handle.get_slice(located)[rows] if stored.shape else handle.get_tensor(located)
        return tensor


def shared_parameters(checkpoints: Sequence[Checkpoint]) -> list[Parameter]:
    """The parameters of checkpoints of one architecture, in the order of layers.

    Of embeddings and heads that some checkpoints have padded with rows, the rows that all have. Raises UserError,
    naming the parameters, where the architectures differ.
    """
    base = checkpoints[0]
    names = {name for checkpoint in checkpoints for name in checkpoint.tensors}
    for checkpoint in checkpoints:
        if missing := sorted(name for name in names if checkpoint.locate(name) is None):
            raise UserError(
                f"{checkpoint.path} lacks {_some(missing)}, which another checkpoint has: not the same architecture. "
                "Compare a model with its own base."
            )
    return sorted((_shared(name, checkpoints, base) for name in names), key=_order)


def _shared(name: str, checkpoints: Sequence[Checkpoint], base: Checkpoint) -> Parameter:
    layer, module = parameter_place(name)
    shapes = {checkpoint.path: checkpoint.tensors[checkpoint.locate(name) or name].shape for checkpoint in checkpoints}
    first = shapes[base.path]
    padded = module in ("embedding", "lm_head")
    for path, shape in shapes.items():
        if shape != first and not (padded and shape[1:] == first[1:]):
            raise UserError(
                f"{name} is {first} in {base.path} and {shape} in {path}: not the same architecture. Compare a model "
                "with its own base."
            )
    rows = (min(shape[0] for shape in shapes.values()),) if first else ()
    return Parameter(name, rows + first[1:], layer, module)


def blocks(parameter: Parameter, whole: bool) -> Iterator[slice]:
    """The rows in which to read a parameter: all at once, or at most about BLOCK_ELEMENTS elements at a time."""
    if not parameter.shape:
        yield slice(None)
        return
    rows = parameter.shape[0]
    width = max(1, torch.Size(parameter.shape[1:]).numel())
    step = rows if whole else max(1, BLOCK_ELEMENTS // width)
    yield from (slice(start, min(start + step, rows)) for start in range(0, rows, max(1, step)))


def _files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix == ".safetensors":
        return [path]
    index, single = path / INDEX, path / "model.safetensors"
    if index.is_file():
        files = sorted({path / name for name in _read_json(index).get("weight_map", {}).values()})
        if missing := [file.name for file in files if not file.is_file()]:
            raise UserError(f"{path} lacks {_some(missing)}, which its index names. Download or save it again.")
        return files
    if single.is_file():
        return [single]
    pickled = "" if not list(path.glob("*.bin")) else " Pickled weights (*.bin) are not read: save it as safetensors."
    raise UserError(f"{path} is no folder with model.safetensors or {INDEX}, and no safetensors file.{pickled}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}). Download or save the checkpoint again.") from None
    return entry if isinstance(entry, dict) else {}


def _ties_embeddings(path: Path) -> bool:
    config = path / "config.json"
    return config.is_file() and _read_json(config).get("tie_word_embeddings") is True


def _order(parameter: Parameter) -> tuple[bool, int, str]:
    return parameter.layer is None, parameter.layer or 0, parameter.name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
