"""Safetensors files as layouts of bytes, so that they can be read and written a block at a time.

The library reads single tensors, but writes only whole files from memory. The format: eight bytes with the header's
length, the header as JSON, then the tensors' bytes (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor of a file."""

    name: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    start: int  # byte in the file
    size: int  # bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What lies where in a file, in the order of its bytes."""

    file: Path
    entries: list[Entry]
    metadata: dict[str, str]

    @staticmethod
    def of(file: Path) -> Layout:
        """The layout of a file that safetensors can open."""
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            header = json.loads(handle.read(length))
        metadata = header.pop("__metadata__", {})
        entries = []
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            entries.append(Entry(name, entry["dtype"], tuple(entry["shape"]), 8 + length + first, last - first))
        return Layout(file, sorted(entries, key=lambda entry: entry.start), metadata)

    def stored_as(self, file: Path, dtypes: Mapping[str, str]) -> Layout:
        """The layout of another file with the same tensors, those named in `dtypes` in another type."""
        sizes = [
            entry.elements * TYPES[dtypes[entry.name]].itemsize if entry.name in dtypes else entry.size
            for entry in self.entries
        ]
        starts = [0, *itertools.accumulate(sizes)][:-1]
        entries = [
            Entry(entry.name, dtypes.get(entry.name, entry.dtype), entry.shape, start, size)
            for entry, start, size in zip(self.entries, starts, sizes, strict=True)
        ]
        base = len(_header(entries, self.metadata))
        placed = [Entry(e.name, e.dtype, e.shape, base + e.start, e.size) for e in entries]
        return Layout(file, placed, self.metadata)

    def header(self) -> bytes:
        """What the file begins with, before the tensors."""
        base = self.entries[0].start if self.entries else 0
        return _header([Entry(e.name, e.dtype, e.shape, e.start - base, e.size) for e in self.entries], self.metadata)


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry in entries:
        offsets = [entry.start, entry.start + entry.size]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight, as the library writes them
    return struct.pack("<Q", len(text)) + text


class Reader:
    """Reads tensors of files block by block, for several threads."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}
        self._opening = threading.Lock()

    def read(self, file: Path, start: int, block: torch.Tensor) -> torch.Tensor:
        """Fill `block`, a contiguous tensor on the CPU, with the bytes of the file from `start`. Returns it.

        Raises EOFError if the file ends before.
        """
        with self._opening:
            if file not in self._open:
                self._open[file] = os.open(file, os.O_RDONLY)
        handle, view = self._open[file], bytes_of(block)
        done = 0
        while done < len(view):
            if not (got := os.preadv(handle, [view[done:]], start + done)):
                raise EOFError(f"{file} ends at byte {start + done}")
            done += got
        return block

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, writable."""
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array)
