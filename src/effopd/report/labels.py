"""Numbers and names as the report writes them."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd


def label_of(config: dict[str, Any], run: str) -> str:
    """The name of a run in figures and tables; `models/<name>` is a model's."""
    if run.startswith("models/"):
        return f"{run.removeprefix('models/')} (model)"
    return str(config["runs"][run].get("label", run))


def with_interval(row: pd.Series, column: str, scale: float = 1, digits: int = 3, unit: str = "") -> str:
    """A mean with its interval, if it has one."""
    mean, low, high = (row[f"{column}{bound}"] * scale for bound in ("", "_low", "_high"))
    if math.isnan(low):
        return f"{mean:.{digits}f}{unit}"
    return f"{mean:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 as text, in percent."""
    return f"{100 * share:.{digits}f} %"
