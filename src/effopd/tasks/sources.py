"""Where problems come from: data sets of the Hugging Face hub, local folders laid out like one, and local files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from effopd.common.errors import ConfigError, UserError
from effopd.common.formatting import shortened
from effopd.tasks.readers import READERS, PlacedRow, Row, UnusableRowError, read_file

SUFFIXES = tuple(READERS)
COLUMNS_SHOWN = 20
SHEET_ERROR = re.compile(r"#(?:NAME\?|REF!|VALUE!|DIV/0!|N/A|NUM!|NULL!|SPILL!|CALC!|ERROR!)|Err:5\d\d")
EXACT_INTEGERS = 2.0**53  # below it, a double that is a whole number is that number


class ColumnError(UserError):
    """A row without a value of a kind that a column needs; the whole source is refused only if no row has one."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason  # the same for all rows with the same fault


def is_local(dataset: str) -> bool:
    """Whether a `dataset` is a local folder, which is written with a leading `/`, `./` or `../`, and not a hub id."""
    return dataset.startswith(("/", "./", "../"))


def local_files(source: Row) -> list[Path]:
    """The local files that a source reads; none for a data set of the hub.

    Raises ConfigError if they do not exist or are of an unknown kind.
    """
    if "files" in source:
        paths = [Path(file) for file in source["files"]]
        for path in paths:
            if path.suffix not in SUFFIXES:
                raise ConfigError(f"config: the source file {path} is none of {', '.join(SUFFIXES)}. Convert it.")
            if not path.is_file():
                raise ConfigError(f"config: the source file {path} does not exist. Correct the path in `task.splits`.")
        return paths
    if not is_local(source["dataset"]):
        return []
    folder = Path(source["dataset"])
    if not folder.is_dir():
        raise ConfigError(
            f"config: the source folder {source['dataset']} does not exist. Correct the path in `task.splits`."
        )
    return sorted(path for path in folder.rglob("*") if _may_be_read(path.relative_to(folder)) and path.is_file())


def _may_be_read(path: Path) -> bool:
    """Whether `datasets` may read a file at this path in a data set's folder.

    It skips whatever is hidden (.git, .cache, .DS_Store) and folders that begin with two underscores.
    """
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and not any(part.startswith("__") for part in path.parent.parts)


def source_name(source: Row) -> str:
    """The name under which a source's rows appear."""
    if "name" in source:
        return str(source["name"])
    return Path(source["files"][0]).stem if "files" in source else str(source["dataset"]).rstrip("/").split("/")[-1]


def rows_of(source: Row) -> Iterator[PlacedRow]:
    """The rows of a source with their places, in its order; for a row that cannot be read, the reason.

    Raises UserError if the source as a whole cannot be read.
    """
    paths = local_files(source) if "files" in source else _split_files(source) if is_local(source["dataset"]) else []
    if not paths:
        yield from _dataset_rows(source)
    for path in paths:
        yield from read_file(path)


def _split_files(source: Row) -> list[Path]:
    """The files of a local folder's split, as `datasets` finds them; none if only `datasets` itself can read them.

    `datasets` guesses the type of each column, and turns answers such as `0010` and `1.10` into numbers.
    """
    from datasets import BuilderConfig, load_dataset_builder

    try:
        builder = load_dataset_builder(_absolute(source["dataset"]), name=source.get("subset"))
    except Exception:  # reading it raises it again, and says it
        return []
    config = builder.config
    plain = replace(type(config)(), **{field.name: getattr(config, field.name) for field in fields(BuilderConfig)})
    paths = [Path(file) for file in (config.data_files or {}).get(source["split"], ())]
    return paths if plain == config and all(path.suffix in SUFFIXES and path.is_file() for path in paths) else []


def _dataset_rows(source: Row) -> Iterator[PlacedRow]:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    name = source["dataset"]
    try:
        path = _absolute(name)
        rows = load_dataset(path, name=source.get("subset"), split=source["split"], revision=source.get("revision"))
        for number, row in enumerate(rows, 1):
            yield f"{name}, row {number}", row
    except Exception as error:  # whatever the data make the libraries below `datasets` raise
        revision = f" at revision {source['revision']}" if "revision" in source else ""
        if "gated dataset" in str(error):  # the hub's own error does not come through `datasets`
            raise UserError(
                f"the data set {name}{revision} is gated. Accept its terms at https://huggingface.co/datasets/{name}, "
                "then log in (`hf auth login`) or set HF_TOKEN."
            ) from None
        reason = str(error.__cause__ or error).strip().splitlines()
        raise UserError(
            f"the data set {name}{revision} cannot be read ({type(error).__name__}: {reason[0] if reason else ''}). "
            "Check `dataset`, `revision`, `subset` and `split` of the source, and the connection to the hub."
        ) from error


def _absolute(dataset: str) -> str:
    """A data set as `datasets` finds it from any folder; it cannot read `./`."""
    return str(Path(dataset).resolve()) if is_local(dataset) else dataset


def value_at(row: Row, column: str) -> Any:
    """A column's value: by its name or, if no column has that name, by a dotted path into nested columns.

    `prompt.1.content` is the content of the second message of `prompt`. Raises ColumnError if the row has no such
    value.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and re.fullmatch("-?[0-9]{1,9}", part) and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            names = ", ".join(map(_shown, list(row)[:COLUMNS_SHOWN])) + (", ..." if len(row) > COLUMNS_SHOWN else "")
            raise ColumnError(
                f"no `{column}`",
                f"the data has no column `{column}`. Set `columns` of the source to some of: {names}.",
            )
    return value


def _shown(name: str) -> str:
    """A column's name, in quotes where white space around it would not be seen."""
    return shortened(repr(name) if name != name.strip() else name, 80)


def text_at(row: Row, column: str) -> str:
    """A column's value as `as_text` writes it. Raises ColumnError or UnusableRowError."""
    return as_text(value_at(row, column), column)


def as_text(value: Any, column: str) -> str:
    """A value of a column as stripped text: numbers as they were written, nothing as the empty text.

    A number that was not written, as in Parquet, is the shortest text that stands for it; a whole one has no decimal
    point, since columns of integers in which some are missing are often stored as floats. Raises ColumnError if the
    value is neither text nor a number, UnusableRowError if it is text that no file can hold, or what a
    spreadsheet shows where a formula failed.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if type(value) is float and value.is_integer() and abs(value) < EXACT_INTEGERS:
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, (str, int, float, Decimal)):
        raise ColumnError(
            f"`{column}` is not text",
            f"column `{column}` holds a {type(value).__name__}, not text. Name a part of it, such as `{column}.0`, in "
            "`columns` of the source.",
        )
    text = str(value).strip()
    if re.search("[\ud800-\udfff]", text):
        raise UnusableRowError(f"`{column}` is not valid UTF-8")
    if SHEET_ERROR.fullmatch(text):
        raise UnusableRowError(f"`{column}` is a spreadsheet's error, such as #REF!")
    return text


def wanted(row: Row, conditions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a row meets the conditions of `where`: by column, `min`, `max` or `equals`. A missing value meets none.

    Raises ColumnError if a number is asked of a column that holds none.
    """
    for column, condition in conditions.items():
        value = value_at(row, column)
        if value is None or value == "":
            return False
        if "equals" in condition and value != condition["equals"] and str(value) != str(condition["equals"]):
            return False
        if not ("min" in condition or "max" in condition):
            continue
        number = number_at(row, column)
        if number is None or not condition.get("min", -math.inf) <= number <= condition.get("max", math.inf):
            return False
    return True


def number_at(row: Row, column: str) -> float | None:
    """A column's value as a number, None if there is none. Raises ColumnError if it is something else."""
    value = value_at(row, column)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except OverflowError:  # an integer beyond the largest float
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        raise ColumnError(
            f"`{column}` is not a number",
            f"column `{column}` holds {shortened(repr(value), 80)}, and a number is asked of it (`where` with `min` or "
            "`max`, or `columns.difficulty`). Use `equals`, or name another column.",
        ) from None
