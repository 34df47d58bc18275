"""Readers of data files that other people wrote: CSV, JSON lines and Parquet.

A row that cannot be read is yielded as the reason why, with its place, and reading goes on behind it. Only a file that
holds no rows at all, or in which it is unclear where rows begin and end, raises UserError.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from effopd.common.errors import UserError

Row = Mapping[str, Any]
PARQUET_ROWS_AT_ONCE = 1024
CSV_FIELD_BYTES = 2**30  # a cell may hold a problem's tests; the csv module's own limit is 128 KiB
LONGEST_INTEGER = 4300  # digits that Python converts to an int by default
DAMAGE = "\udcff"  # stands for bytes that are not text; valid text has no lone surrogate, so rows that use it are found


class UnusableRowError(Exception):
    """A row that holds no problem; the message says why, in the same words for all rows with the same fault."""


PlacedRow = tuple[str, Row | UnusableRowError]  # the place in words ("data.csv, line 7"), and the row there


class WrittenNumber(float):
    """A number from a text file: a float to compute with, whose text is what was written (`1.10`, `1e400`)."""

    text: str

    def __new__(cls, text: str) -> WrittenNumber:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


def read_file(path: Path) -> Iterator[PlacedRow]:
    """The rows of a file of one of the kinds in READERS, in order. Raises UserError if it cannot be read as one."""
    return READERS[path.suffix](path)


def _mark_damage(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return DAMAGE, error.end


codecs.register_error("effopd-damage", _mark_damage)


def _open_text(path: Path, newline: str | None) -> TextIO:
    """Open a text file in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark; other bytes become DAMAGE."""
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    return path.open(encoding=encoding, errors="effopd-damage", newline=newline)


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    with _open_text(path, newline=None) as file:
        for number, line in enumerate(file, 1):
            if text := line.strip("\ufeff \t\r\n"):  # files that were joined have byte-order marks inside
                yield f"{path}, line {number}", _json_row(text)


def _json_row(text: str) -> Row | UnusableRowError:
    try:
        row = _JSON.decode(text)
    except json.JSONDecodeError as error:
        return UnusableRowError(f"not JSON: {error.msg}")
    except RecursionError:
        return UnusableRowError("JSON that is nested too deeply")
    except UnusableRowError as error:
        return error
    return row if isinstance(row, dict) else UnusableRowError("not a JSON object")


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise UnusableRowError("a JSON object with one key twice")
    return row


def _json_integer(text: str) -> int | WrittenNumber:
    return int(text) if len(text) <= LONGEST_INTEGER else WrittenNumber(text)


_JSON = json.JSONDecoder(
    strict=False,  # tabs and line feeds that nobody escaped
    object_pairs_hook=_json_object,
    parse_float=WrittenNumber,
    parse_int=_json_integer,
    parse_constant=WrittenNumber,  # NaN and infinities
)


def _csv_rows(path: Path) -> Iterator[PlacedRow]:
    csv.field_size_limit(CSV_FIELD_BYTES)
    with _open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            place = f"{path}, line {reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if str(error) == "unexpected end of data":
                    raise UserError(f"{place}: a quoted value begins in this row and never ends. Close it.") from None
                if header is None:
                    raise UserError(f"{place}: the column names are not CSV ({error}). Correct them.") from None
                yield place, UnusableRowError("not CSV: text between a closing quote and the next comma")
                continue
            if not cells:
                continue
            if header is None:
                header = _distinct(path, cells)
            elif len(cells) == len(header):
                yield place, dict(zip(header, cells, strict=True))
            else:
                yield place, UnusableRowError("not as many values as there are columns")


def _distinct(path: Path, names: list[str]) -> list[str]:
    """Column names. Raises UserError if two are the same, since one of the columns could not be read."""
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise UserError(f"{path} has two columns named `{twice[0]}`. Rename or remove one.")
    return names


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _distinct(path, file.schema_arrow.names)
            for batch in file.iter_batches(PARQUET_ROWS_AT_ONCE):
                for row in _batch_rows(_written(batch)):
                    number += 1
                    yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # a permission, a disk
            raise
        raise UserError(f"{path} is not a readable parquet file ({error}). Make it again.") from error


def _batch_rows(batch: Any) -> Iterable[Row | UnusableRowError]:
    """The rows of an Arrow batch. Not all that Arrow stores can be read: text not in UTF-8, dates in year 10000."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):
        if len(batch) > 1:
            return [row for number in range(len(batch)) for row in _batch_rows(batch.slice(number, 1))]
        return [UnusableRowError("a value that Python cannot hold, such as text that is not UTF-8")]


def _written(batch: Any) -> Any:
    """A batch whose numbers in single precision are the doubles that are written alike: 0.1 stays 0.1."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        as_text, as_double = (_with_floats(field.type, kind) for kind in (pa.string(), pa.float64()))
        if as_double != field.type:
            batch = batch.set_column(place, field.name, batch.column(place).cast(as_text).cast(as_double))
    return batch


def _with_floats(kind: Any, other: Any) -> Any:
    """An Arrow type with `other` in place of the floats of single precision in it."""
    import pyarrow as pa

    if kind == pa.float32():
        return other
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_with_floats(kind.value_type, other), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(_with_floats(kind.value_type, other))
    if pa.types.is_list(kind):
        return pa.list_(_with_floats(kind.value_type, other))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_floats(field.type, other)) for field in kind])
    return kind


READERS = {".parquet": _parquet_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}
