"""Checkpoints as streams of parameters: Hugging Face folders and safetensors files, read piece by piece."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from effopd.artifacts.fingerprints import digest
from effopd.common.errors import UserError
from effopd.models.checkpoint_files import Stored, read_object, some, stored_tensors
from effopd.models.completeness import check_tied, whole_tensors
from effopd.models.models import known_architecture

HEAD = "lm_head.weight"
BLOCK_ELEMENTS = 2**24  # of a matrix whose spectrum is not asked for, read at a time

ATTENTION = frozenset({"q", "k", "v", "o", "qkv"})
MLP = frozenset({"gate", "up", "down", "gate_up"})
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_MODULES = tuple(
    (re.compile(pattern), module)
    for pattern, module in (
        (r"\.bias$", "bias"),
        (r"norm", "norm"),
        (r"(?:^|\.)lm_head\.", "lm_head"),
        (r"embed_tokens\.|(?:^|\.)wte\.|(?:^|\.)(?:word_)?embeddings?\.|\.embed_in\.", "embedding"),
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
    def open(path: Path, model: PreTrainedModel | None = None) -> Checkpoint:
        """A Hugging Face folder of safetensors (one file, or shards with their index), one file, or a state's folder.

        A folder has to hold all weights of the architecture `model` (default: of its config.json, if transformers knows
        it) and no others. Raises ArtifactError if it does not, is damaged, or is quantized.
        """
        model = model or (known_architecture(path) if path.is_dir() else None)
        if model is not None:
            return Checkpoint(path, whole_tensors(path, model))
        checkpoint = Checkpoint(path, stored_tensors(path))
        if _ties_embeddings(path) and HEAD in checkpoint.tensors and (embedding := checkpoint._embedding()):
            check_tied(path, checkpoint.tensors[HEAD], checkpoint.tensors[embedding])
            del checkpoint.tensors[HEAD]
        return checkpoint

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
            return self._embedding()
        return None

    def read(self, name: str, rows: slice = slice(None)) -> torch.Tensor:
        """Rows of a parameter as stored. The file is mapped only meanwhile, so that nothing of it stays in memory."""
        located = self.locate(name)
        assert located is not None
        stored = self.tensors[located]
        with safe_open(stored.file, framework="pt") as handle:
            tensor: torch.Tensor = handle.get_slice(located)[rows] if stored.shape else handle.get_tensor(located)
        return tensor

    def _embedding(self) -> str | None:
        return next((other for other in self.tensors if parameter_place(other)[1] == "embedding"), None)


def shared_parameters(checkpoints: Sequence[Checkpoint]) -> list[Parameter]:
    """The parameters of checkpoints of one architecture, in the order of layers.

    Of embeddings and heads that some checkpoints have padded with rows, the rows that all have. Raises UserError,
    naming the parameters, if the architectures differ.
    """
    base = checkpoints[0]
    names = sorted({name for checkpoint in checkpoints for name in checkpoint.tensors})
    for checkpoint in checkpoints:
        if missing := [name for name in names if checkpoint.locate(name) is None]:
            raise UserError(
                f"{checkpoint.path} lacks {some(missing)}, which another checkpoint has: not the same architecture. "
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


def _ties_embeddings(path: Path) -> bool:
    config = path / "config.json"
    return config.is_file() and read_object(config).get("tie_word_embeddings") is True


def _order(parameter: Parameter) -> tuple[bool, int, str]:
    return parameter.layer is None, parameter.layer or 0, parameter.name
