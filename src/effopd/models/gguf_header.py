"""The header of a GGUF file: what it says of itself and of its tensors, no longer than the file is.

Read before any library reads the file: those follow lengths of a damaged file without end. Light to import.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from effopd.common.errors import ArtifactError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
REMEDY = "Download the file again, or take another."

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9  # types of values that have no size of their own


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of its model."""

    values: Mapping[str, Any]  # by key; of lists their lengths
    shapes: Mapping[str, tuple[int, ...]]  # of tensors, by their names in the file

    @property
    def architecture(self) -> str:
        """The name of the model's family, as llama.cpp has it."""
        return str(self.values.get("general.architecture", "unknown"))

    @property
    def elements(self) -> int:
        """The numbers in all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def is_gguf(path: Path) -> bool:
    """Whether a path is named as GGUF files are."""
    return path.suffix.lower() == ".gguf"


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file. Raises ArtifactError if it is damaged, or of a version that is not read."""
    with path.open("rb") as file:
        return _Reader(file, path).header()


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.left = file, path, path.stat().st_size

    def header(self) -> GgufHeader:
        if self.take(4) != MAGIC:
            raise ArtifactError(f"{self.path} is no GGUF file (it does not begin with GGUF). {REMEDY}")
        if (version := self.number("<I")) not in VERSIONS:
            raise ArtifactError(f"{self.path} is GGUF of version {version}; those that are read are 2 and 3. {REMEDY}")
        tensors, entries = self.number("<Q"), self.number("<Q")
        values = {self.text(): self.value(self.number("<I")) for _ in range(entries)}
        shapes = {}
        for _ in range(tensors):
            name = self.text()
            if (count := self.number("<I")) > MOST_DIMENSIONS:
                raise self.damaged(f"{name} has {count} dimensions")
            shapes[name] = tuple(self.number("<Q") for _ in range(count))
            self.skip(12)  # type and place
        return GgufHeader(values, shapes)

    def take(self, size: int) -> bytes:
        self.spend(size)
        return self.file.read(size)

    def skip(self, size: int) -> None:
        self.spend(size)
        self.file.seek(size, 1)

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise self.damaged("it ends before its header does")

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        raw = self.take(self.number("<Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.damaged("a text in its header is not UTF-8") from None

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            return self.number(self.form(kind))
        kind, length = self.number("<I"), self.number("<Q")
        if kind != _TEXT:
            self.skip(length * struct.calcsize(self.form(kind)))
            return length
        for _ in range(length):  # at least eight bytes each, so that the file's end is the loop's
            self.skip(self.number("<Q"))
        return length

    def form(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.damaged(f"a value in its header is of the unknown type {kind}")
        return _SCALARS[kind]

    def damaged(self, why: str) -> ArtifactError:
        return ArtifactError(f"{self.path} is damaged ({why}). {REMEDY}")
