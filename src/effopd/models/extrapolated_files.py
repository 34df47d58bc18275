"""Candidates from checkpoint folders: current + c * (current - anchor), streamed, never a whole model in memory."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effopd.artifacts.folders import new_folder
from effopd.common.errors import UserError
from effopd.common.progress import Progress
from effopd.extrapolation.candidates import moving_parameters
from effopd.models.checkpoint_files import INDEX, read_object
from effopd.models.tensor_files import NAMES, TYPES, Entry, Layout, Reader, bytes_of
from effopd.models.weight_files import HEAD, Checkpoint, parameter_place, shared_parameters

THREADS = 4  # more than cores, as some wait for the disk (docs/benchmarks.md)
BLOCK_ELEMENTS = 2**18  # worked on at a time: what fits a core's cache
COPIED = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")  # configuration, tokenizer, generation
NOT_COPIED = ("trainer_state.json", "manifest.json", INDEX)  # not of the new checkpoint
ROUNDED_AWAY = 0.5  # share of a step above which rounding deserves a warning


@dataclass
class Summary:
    """What was written, and what 16 bits did to it."""

    tensors: int = 0
    moved: int = 0
    bytes: int = 0
    elements: int = 0  # moving ones that are stored in 16 bits, in a checkpoint or in the result
    alike: int = 0  # of those: the same in both checkpoints
    step: float = 0.0  # squared norm of coefficient * (current - anchor) over them
    lost: float = 0.0  # squared norm of what storing the result in 16 bits took away

    def add(self, part: Summary) -> None:
        for name in (field.name for field in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(part, name))

    def warnings(self) -> Iterator[str]:
        """What rounding did that a user should know, with the remedy."""
        if self.lost > self.step * ROUNDED_AWAY**2:
            share = math.sqrt(self.lost / self.step) if self.step else math.inf
            yield f"storing in 16 bits rounds away {share:.0%} of the step (by norm). --dtype float32 keeps it."
        if self.alike > self.elements * ROUNDED_AWAY:
            yield (
                f"{self.alike / self.elements:.0%} of the moving weights are the same in both checkpoints: most of the "
                "update was rounded away when they were saved in 16 bits. Save float32 master weights and extrapolate "
                "those."
            )


def extrapolate_folder(
    anchor: Path,
    current: Path,
    coefficient: float,
    out: Path,
    *,
    parameters: str = "attention_mlp",
    dtype: torch.dtype | None = None,
) -> Summary:
    """Write the candidate current + coefficient * (current - anchor) as the checkpoint folder `out`.

    `anchor` and `current` are folders of safetensors, whole or in shards, or single files; `parameters` is what
    `candidates.moving_parameters` knows. Each operation rounds once to float32, as in `candidates.candidate`, whatever
    the tensors are stored in; the result is stored as `current` is, or in `dtype`. `out` gets the files of `current`,
    configuration and tokenizer among them, and appears when it is complete. Raises UserError if an input cannot be
    read, the architectures differ, a result is not finite, or `out` exists.
    """
    _check_arguments(anchor, current, coefficient, out)
    before, after = Checkpoint.open(anchor), Checkpoint.open(current)
    _check_alike(before, after)
    layouts = [Layout.of(file) for file in sorted({stored.file for stored in after.tensors.values()})]
    names = [entry.name for layout in layouts for entry in layout.entries]
    moving = _moving(after, names, parameters)
    summary, progress = Summary(), Progress("extrapolating: tensor", len(names))
    with (
        new_folder(out) as folder,
        ExitStack() as files,
        _workers(THREADS) as workers,
        _workers(1) as syncing,
    ):
        stream = _Stream(before, files.enter_context(closing(Reader())), coefficient, moving)
        on_disk = []
        for layout in layouts:
            stored = {e.name: NAMES[dtype] for e in layout.entries if dtype and e.name in after.tensors}
            target = layout.stored_as(folder / layout.file.name, stored)
            handle = files.enter_context(target.file.open("wb", buffering=0))
            handle.write(target.header())
            summary.bytes += handle.tell()
            write = partial(stream.write, handle.fileno(), layout.file)
            for part in workers.map(write, layout.entries, target.entries):
                summary.add(part)  # in the tensors' order, whichever was first: sums are the same each time
                progress.update(summary.tensors, gigabytes=summary.bytes / 1e9)
            on_disk.append(syncing.submit(os.fsync, handle.fileno()))  # the disk works while the next file is computed
        for sync in on_disk:
            sync.result()
        if current.is_dir():
            _copy_the_rest(current, folder, layouts, dtype, summary.bytes)
    return summary


@contextmanager
def _workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; after an error what waits for one is not begun."""
    pool = ThreadPoolExecutor(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Memory(threading.local):
    """A thread's buffers, by what they hold and its type."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], torch.Tensor] = {}


class _Stream:
    """The candidate's tensors, block by block, in memory of each thread's own that is used again and again."""

    def __init__(self, anchor: Checkpoint, reader: Reader, coefficient: float, moving: Mapping[str, str]) -> None:
        self.reader, self.coefficient, self.moving = reader, coefficient, moving
        self.anchor = {
            stored.file: {entry.name: entry for entry in Layout.of(stored.file).entries}
            for stored in anchor.tensors.values()
        }
        self.files = {name: stored.file for name, stored in anchor.tensors.items()}
        self._memory = _Memory()

    def write(self, handle: int, file: Path, source: Entry, target: Entry) -> Summary:
        """Write the candidate of one tensor of `file` to where `target` is in an open file, in that type."""
        summary, place = Summary(tensors=1, bytes=target.size), target.start
        for block in self._blocks(file, source, target.dtype, summary):
            view = bytes_of(block)
            while view:
                done = os.pwrite(handle, view, place)
                view, place = view[done:], place + done
        return summary

    def _blocks(self, file: Path, entry: Entry, stored_as: str, summary: Summary) -> Iterator[torch.Tensor]:
        """Each block is valid until the next is asked for."""
        if entry.name in self.moving:
            summary.moved += 1
            yield from self._moved(file, entry, stored_as, summary)
        elif entry.dtype == stored_as:
            yield from self._read("current", file, entry.start, entry.size, torch.uint8)
        else:
            for block in self._read("current", file, entry.start, entry.elements, TYPES[entry.dtype]):
                yield self._converted("stored", block, TYPES[stored_as])

    def _moved(self, file: Path, entry: Entry, stored_as: str, summary: Summary) -> Iterator[torch.Tensor]:
        name = self.moving[entry.name]
        other = self.anchor[self.files[name]][name]
        sixteen = any(TYPES[dtype].itemsize == 2 for dtype in (entry.dtype, other.dtype, stored_as))
        current = self._read("current", file, entry.start, entry.elements, TYPES[entry.dtype])
        anchor = self._read("anchor", self.files[name], other.start, other.elements, TYPES[other.dtype])
        for now, then in zip(current, anchor, strict=True):
            weights, step = self._converted("weights", now, torch.float32), self._converted("step", then, torch.float32)
            torch.sub(weights, step, out=step)
            if sixteen:
                summary.elements += step.numel()
                summary.alike += step.numel() - int(step.count_nonzero())
            step.mul_(self.coefficient)
            result = weights.add_(step)
            if not math.isfinite(result.sum().item()) and not result.isfinite().all():
                raise UserError(
                    f"{entry.name} gets values that are not finite with coefficient {self.coefficient:g}. "
                    "Check both checkpoints, or lower the coefficient."
                )
            stored = self._converted("stored", result, TYPES[stored_as])
            if sixteen:
                summary.step += step.dot(step).item()
                if stored is not result:
                    lost = result.sub_(stored)
                    summary.lost += lost.dot(lost).item()
            yield stored

    def _read(self, role: str, file: Path, start: int, elements: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        size = BLOCK_ELEMENTS * (4 if dtype == torch.uint8 else 1)
        for first in range(0, elements, size):
            block = self._buffer(role, dtype, size)[: min(size, elements - first)]
            yield self.reader.read(file, start + first * dtype.itemsize, block)

    def _converted(self, role: str, block: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The block in another type, in memory of its own; itself if it has that type."""
        if block.dtype == dtype:
            return block
        return self._buffer(role, dtype, BLOCK_ELEMENTS)[: block.numel()].copy_(block)

    def _buffer(self, role: str, dtype: torch.dtype, size: int) -> torch.Tensor:
        if (role, dtype) not in self._memory.held:
            self._memory.held[role, dtype] = torch.empty(size, dtype=dtype)
        return self._memory.held[role, dtype]


def _check_arguments(anchor: Path, current: Path, coefficient: float, out: Path) -> None:
    if not abs(coefficient) <= torch.finfo(torch.float32).max:
        raise UserError(f"--coefficient is {coefficient}. Give a number, such as 2.")
    for name, path in (("anchor", anchor), ("current", current)):
        if not path.exists():
            raise UserError(f"--{name}: {path} does not exist. Give a checkpoint folder.")
    if anchor.resolve() == current.resolve():
        raise UserError(f"--anchor and --current are the same ({current}): there is no update to extrapolate.")


def _check_alike(anchor: Checkpoint, current: Checkpoint) -> None:
    """Raise UserError, naming the parameters, unless both are checkpoints of one architecture."""
    for parameter in shared_parameters([anchor, current]):
        for checkpoint in (anchor, current):
            shape = checkpoint.tensors[checkpoint.locate(parameter.name) or parameter.name].shape
            if shape != parameter.shape:  # comparisons leave out rows that pad a vocabulary; a model needs them
                raise UserError(
                    f"{parameter.name} is {shape} in {checkpoint.path}, and shorter in the other checkpoint. "
                    "Extrapolate checkpoints of one training run."
                )


def _moving(current: Checkpoint, names: list[str], which: str) -> dict[str, str]:
    """The tensors of the files of `current` that move, each with the name of its parameter.

    Some files store a tied head beside the embedding: it moves with it.
    """
    try:
        moving = {name: name for name in moving_parameters(current.tensors, which)}
    except ValueError as error:
        raise UserError(f"--parameters: {error}.") from None
    embedding = next((name for name in moving if parameter_place(name)[1] == "embedding"), None)
    if HEAD in names and HEAD not in current.tensors and embedding:
        moving[HEAD] = embedding
    return moving


def _copy_the_rest(source: Path, folder: Path, layouts: list[Layout], dtype: torch.dtype | None, size: int) -> None:
    """Configuration, tokenizer and generation files, and the index of shards."""
    for file in source.iterdir():
        if file.is_file() and file.suffix in COPIED and file.name not in NOT_COPIED and file.name[0] != ".":
            shutil.copy(file, folder)
    if (source / INDEX).is_file():
        index = read_object(source / INDEX)
        index["metadata"]["total_size"] = size
        _write_json(folder / INDEX, index)
    config = folder / "config.json"
    if dtype and config.is_file():
        entry = read_object(config)
        entry.pop("torch_dtype", None)
        _write_json(config, {**entry, "dtype": str(dtype).removeprefix("torch.")})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
