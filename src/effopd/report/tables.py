"""Tables as files: CSV that spreadsheets cannot run, and that gives back what was written; parquet."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from effopd.artifacts.manifests import atomic_path
from effopd.common.errors import ArtifactError

# Columns that hold names which people choose: always text, whether they look like numbers, "NA" or a formula.
NAMES = ("run", "reference", "group", "model", "source", "task", "student", "teacher")
# A cell that begins so is a formula to a spreadsheet. It is written with an apostrophe before it, which spreadsheets do
# not show; one that has apostrophes there already gets one more, so that reading is exact.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
_WRITTEN = re.compile(r"'+[=+\-@\t\r\n]")


def write_csv(path: Path, table: pd.DataFrame, digits: int | None = 6) -> None:
    """Write a table as CSV, atomically; floats with so many significant `digits`, or exactly."""
    escaped = table.assign(**{name: table[name].map(_escaped, na_action="ignore") for name in NAMES if name in table})
    with atomic_path(path) as temporary:
        escaped.to_csv(temporary, index=False, float_format=None if digits is None else f"%.{digits}g")


def read_csv(path: Path, text: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read a table that `write_csv` wrote. An empty cell is NaN, and nothing else is.

    `text`: columns to read as text besides `NAMES`. Raises ArtifactError where it is missing or no such table.
    """
    table: pd.DataFrame = _read(
        lambda: pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys([*NAMES, *text], str)),
        path,
    )
    names = {name: table[name].map(_unescaped, na_action="ignore") for name in NAMES if name in table}
    return table.assign(**names)


def read_parquet(path: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a table that no manifest lists. Raises ArtifactError where it is missing or damaged."""
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
