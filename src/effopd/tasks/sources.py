"""Where problems come from: data sets of the Hugging Face hub, local folders laid out like one, and local files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from effopd.runtime.errors import ConfigError, UserError

Row = Mapping[str, Any]
SUFFIXES = (".parquet", ".jsonl", ".csv")
PARQUET_ROWS_AT_ONCE = 1024
CSV_FIELD_BYTES = 2**30  # a cell may hold a problem's tests; the csv module's own limit is 128 KiB


def is_local(dataset: str) -> bool:
    """Whether a `dataset` is a local folder, which is written with a leading `/`, `./` or `../`, and not a hub id."""
    return dataset.startswith(("/", "./", "../"))


def local_files(source: Row) -> list[Path]:
    """The local files that a source reads; none for a data set of the hub.

    Raises ConfigError where they do not exist or are of an unknown kind.
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
    return sorted(path for path in folder.rglob("*") if path.is_file())


def source_name(source: Row) -> str:
    """The name under which a source's rows appear."""
    if "name" in source:
        return str(source["name"])
    return Path(source["files"][0]).stem if "files" in source else str(source["dataset"]).rstrip("/").split("/")[-1]


def rows_of(source: Row) -> Iterator[Row]:
    """The rows of a source, in its order. Raises UserError where it cannot be read."""
    if "files" not in source:
        yield from _dataset_rows(source)
        return
    for path in local_files(source):
        yield from {".parquet": _parquet_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows}[path.suffix](path)


def _dataset_rows(source: Row) -> Iterable[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from datasets.utils.logging import disable_progress_bar
    from huggingface_hub.errors import HfHubHTTPError

    disable_progress_bar()
    name = source["dataset"]
    try:
        rows: Iterable[Row] = load_dataset(
            name, name=source.get("subset"), split=source["split"], revision=source.get("revision")
        )
    except (DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        revision = f" at revision {source['revision']}" if "revision" in source else ""
        if "gated dataset" in str(error):  # the hub's own error does not come through `datasets`
            raise UserError(
                f"the data set {name}{revision} is gated. Accept its terms at https://huggingface.co/datasets/{name}, "
                "then log in (`hf auth login`) or set HF_TOKEN."
            ) from None
        reason = str(error).strip().splitlines()
        raise UserError(
            f"the data set {name}{revision} cannot be read ({type(error).__name__}: {reason[0] if reason else ''}). "
            "Check `dataset`, `revision`, `subset` and `split` of the source, and the connection to the hub."
        ) from error
    return rows


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a readable parquet file ({error}). Make it again.") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number} is not JSON ({error}). Mend or remove it.") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}, line {number} is not a JSON object. Write one object a line.")
            yield row


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(CSV_FIELD_BYTES)
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def value_at(row: Row, column: str) -> Any:
    """A column's value: by its name or, where no column has that name, by a dotted path into nested columns.

    `prompt.1.content` is the content of the second message of `prompt`. Raises UserError where a row has no such value.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.lstrip("-").isdigit() and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            raise UserError(
                f"the data has no column `{column}`. Set `columns` of the source to some of: {', '.join(row)}."
            )
    return value


def text_at(row: Row, column: str) -> str:
    """A column's value as stripped text: whole numbers without a decimal point, nothing as the empty text."""
    value = value_at(row, column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (str, int, float)):
        raise UserError(
            f"column `{column}` holds a {type(value).__name__}, not text. Name a part of it, such as `{column}.0`, in "
            "`columns` of the source."
        )
    return str(value).strip()


def wanted(row: Row, conditions: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a row meets the conditions of `where`: by column, `min`, `max` or `equals`. A missing value meets none.

    Raises UserError where a number is asked of a column that holds none.
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
    """A column's value as a number, None where there is none. Raises UserError where it is something else."""
    value = value_at(row, column)
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(
            f"column `{column}` holds {value!r}, and a number is asked of it (`where` with `min` or `max`, or "
            "`columns.difficulty`). Use `equals`, or name another column."
        ) from None
