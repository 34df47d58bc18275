"""Numbers from outside: what a server, a file or a reward function gives is checked here, once, on its way in."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from effopd.common.errors import UserError
from effopd.common.formatting import shortened

# A server that computes `logit - logsumexp(logits)` in float32 is off by the rounding of its logits: up to 3e-5 for
# logits of 256 to 512. So a token of probability 1 can get a log-probability slightly above 0, which is read as 0.
LARGEST_ROUNDING = 1e-4
LARGEST_TOTAL = 1.01  # of the probabilities of different tokens, each rounded to bfloat16
POSITIONS_AT_ONCE = 2**14

Place = Callable[[int], str]  # says where the number at a (flat) position stood


class NumberError(UserError):
    """A number from outside that cannot be used. The message says where it stood and what it was."""


def logprobs(values: Sequence[Any] | np.ndarray, place: Place) -> np.ndarray:
    """Log-probabilities as a float32 array of the same shape: finite, and at most 0 (but for rounding).

    `values` is a list as JSON has it, or an array of numbers. Raises NumberError for the first that is none.
    """
    if not isinstance(values, np.ndarray):
        values = _array(values, place)
    with np.errstate(over="ignore"):
        found = values.astype(np.float32, copy=False)
    usable = (values <= LARGEST_ROUNDING) & (found > -np.inf)  # neither is true of NaN
    if not usable.all():
        position = int(np.flatnonzero(~usable)[0])
        raise NumberError(f"{place(position)} is {shown(values.flat[position].item())}, not a log-probability")
    return np.minimum(found, np.float32(0)) if (found > 0).any() else found


def likeliest(found: np.ndarray, place: Place) -> None:
    """Check the log-probabilities [T, K] of each position's K likeliest tokens, likeliest first.

    `place` says where a position stood. Raises NumberError for the first if they do not descend, or where their
    probabilities add up to more than 1.
    """
    for start in range(0, len(found), POSITIONS_AT_ONCE):
        rows = found[start : start + POSITIONS_AT_ONCE]
        rising, total = np.any(np.diff(rows, axis=1) > 0, axis=1), np.exp(rows, dtype=np.float64).sum(1)
        if (wrong := rising | (total > LARGEST_TOTAL)).any():
            row = int(np.flatnonzero(wrong)[0])
            what = "that do not descend by rank" if rising[row] else f"whose probabilities add up to {total[row]:.3g}"
            raise NumberError(f"{place(start + row)} has log-probabilities {what}: {shown(rows[row].tolist())}")


def token_id(text: str, place: str) -> int:
    """A token id that is a key of a JSON object, written as servers write it: digits alone, no leading zero."""
    if text.isascii() and text.isdecimal() and len(text) < 12 and text == str(int(text)):
        return int(text)
    raise NumberError(f"{place} has the key {shown(text)}, not a token id")


def whole(value: Any, place: str, least: int = 0) -> int:
    """A JSON number that is an integer of at least `least`."""
    if type(value) is not int or value < least:
        raise NumberError(f"{place} is {shown(value)}, not an integer of at least {least}")
    return value


def number(value: Any, place: str) -> float:
    """A real number (Python's, or a single one of NumPy or torch) as a float, which may be NaN or infinite."""
    try:
        single = value.item() if hasattr(value, "item") else value
        if isinstance(single, numbers.Real | Decimal):
            return float(single)
    except (ValueError, RuntimeError):  # an array of several
        pass
    except OverflowError:
        raise NumberError(f"{place} is {shown(value)}, too large") from None
    raise NumberError(f"{place} is {shown(value)}, not a number")


def shown(value: Any) -> str:
    """A short form of any value, for a message."""
    if value is None:
        return "null"
    try:
        return shortened(repr(value), 60)
    except Exception:  # integers of thousands of digits, and objects of other people
        return f"a value of type {type(value).__name__}"


def _array(values: Sequence[Any], place: Place) -> np.ndarray:
    """A list of JSON numbers in float64; booleans are none."""
    for position, value in enumerate(values):
        if type(value) is not float and type(value) is not int:
            raise NumberError(f"{place(position)} is {shown(value)}, not a log-probability")
    try:
        return np.array(values, np.float64)
    except OverflowError:
        position = next(i for i, value in enumerate(values) if abs(value) > 1e300)
        raise NumberError(f"{place(position)} is {shown(values[position])}, not a log-probability") from None
