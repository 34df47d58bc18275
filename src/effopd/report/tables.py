"""Tables as files: CSV that spreadsheets cannot run, and that gives back what was written; parquet."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from effopd.artifacts.manifests import atomic_path
from effopd.common.errors import ArtifactError
from effopd.common.formatting import shortened
from effopd.report.table_columns import COLUMNS, NAMES, WORDS

# A cell that begins so is a formula to a spreadsheet. It is written with an apostrophe before it, which spreadsheets do
# not show; one that has apostrophes there already gets one more, so that reading is exact.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_WRITTEN = re.compile(r"'+[=+\-@\t\r\n]")

# Beside text pandas gives the numbers of a column as text, too.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf|nan|True|False")


def write_csv(path: Path, table: pd.DataFrame, digits: int | None = 6) -> None:
    """Write a table as CSV, atomically; floats with so many significant `digits`, or exactly."""
    escaped = table.assign(**{name: table[name].map(_escaped, na_action="ignore") for name in NAMES if name in table})
    with atomic_path(path) as temporary:
        escaped.to_csv(temporary, index=False, float_format=None if digits is None else f"%.{digits}g")


def read_csv(path: Path, text: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a table that `write_csv` wrote. An empty cell is NaN, and nothing else is.

    `text`: columns to read as text besides `NAMES`. Raises ArtifactError if it is missing or no such table, lacks a
    column that a table of its name has, or holds text where a number belongs.
    """
    table: pd.DataFrame = _read(
        lambda: pd.read_csv(
            path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys([*NAMES, *text], str), index_col=False
        ),
        path,
    )
    _check_columns(table, path)
    names = {name: table[name].map(_unescaped, na_action="ignore") for name in NAMES if name in table}
    return table.assign(**names)


def _check_columns(table: pd.DataFrame, path: Path) -> None:
    remedy = "Delete it and run the workflow again."
    if lacking := [name for name in COLUMNS.get(path.stem, ()) if name not in table]:
        raise ArtifactError(f"{path} lacks the column `{lacking[0]}`. {remedy}")
    for name in table.select_dtypes(exclude=["number", "bool"]).columns.difference([*NAMES, *WORDS], sort=False):
        cells = table[name].dropna()
        if wrong := [row for row, cell in cells.items() if isinstance(cell, str) and not _NUMBER.fullmatch(cell)]:
            found = shortened(repr(cells[wrong[0]]), 60)
            raise ArtifactError(f"{path}: `{name}` is {found} in row {wrong[0] + 1}, not a number. {remedy}")


def read_parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a table that no manifest lists. Raises ArtifactError if it is missing or damaged."""
    table: pd.DataFrame = _read(lambda: pd.read_parquet(path, columns=columns), path)
    return table


def _read(read: Callable[[], Any], path: Path) -> Any:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist. Run the workflow to make it.")
    try:
        return read()
    except ValueError as error:  # those of pandas and of Arrow among them
        raise ArtifactError(f"{path} is damaged ({error}). Delete it and run the workflow again.") from None


def _escaped(cell: object) -> object:
    return f"'{cell}" if _FORMULA.match(str(cell)) else cell


def _unescaped(cell: str) -> str:
    return cell[1:] if _WRITTEN.match(cell) else cell
