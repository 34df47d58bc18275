"""Whether what a program printed or returned is what was expected."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

TOLERANCE = 1e-6  # between numbers with a decimal point: absolute up to 1, relative beyond
LONGEST_NUMBER = 4300  # digits of a whole number that is read as one; comparing longer ones as text costs no time
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


class LongNumber(str):
    """A whole number of so many digits that it is kept as it is written."""

    __slots__ = ()


def read_value(text: str | bytes) -> Any:
    """A JSON value that a program or a data set wrote. Raises ValueError if it is none, or is nested too deeply."""
    try:
        return json.loads(text, parse_int=lambda digits: (LongNumber if len(digits) > LONGEST_NUMBER else int)(digits))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def same_output(found: str, expected: str) -> bool:
    """Whether two outputs are equal line by line, but for white space and trailing blank lines.

    Words that are both numbers, one with a decimal point or exponent, need only agree to `TOLERANCE`.
    """
    lines, wanted = found.rstrip().split("\n"), expected.rstrip().split("\n")
    if len(lines) != len(wanted):
        return False
    for line, other in zip(lines, wanted, strict=True):
        words, others = line.split(), other.split()
        if len(words) != len(others) or not all(map(_same_word, words, others)):
            return False
    return True


def _same_word(word: str, other: str) -> bool:
    if word == other:
        return True
    if not any(mark in word + other for mark in ".eE") or not (NUMBER.fullmatch(word) and NUMBER.fullmatch(other)):
        return False
    one, two = float(word), float(other)
    if math.isfinite(one) and math.isfinite(two):
        return _close(one, two)
    try:  # at least one is beyond what a float holds, and so not near to anything
        return Decimal(word) == Decimal(other)
    except InvalidOperation:
        return False


def same_value(found: Any, expected: Any) -> bool:
    """Whether two JSON values are equal, numbers that are not whole to `TOLERANCE`.

    True and 1 differ; infinity and NaN equal themselves alone. However deeply they are nested.
    """
    pairs = [(found, expected)]
    while pairs:
        one, two = pairs.pop()
        if isinstance(one, list) and isinstance(two, list):
            if len(one) != len(two):
                return False
            pairs += zip(one, two, strict=True)
        elif isinstance(one, dict) and isinstance(two, dict):
            if one.keys() != two.keys():
                return False
            pairs += [(one[key], two[key]) for key in one]
        elif not _same_leaf(one, two):
            return False
    return True


def _same_leaf(one: Any, two: Any) -> bool:
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, float) or isinstance(two, float):
        return isinstance(one, (int, float)) and isinstance(two, (int, float)) and _close(one, two)
    return type(one) is type(two) and bool(one == two)


def _close(one: float, two: float) -> bool:
    """Whether two numbers are equal, or finite and near to each other."""
    try:
        one, two = float(one), float(two)
    except OverflowError:  # a whole number beyond any float
        return one == two
    if math.isnan(one) or math.isnan(two):
        return math.isnan(one) and math.isnan(two)
    if math.isinf(one) or math.isinf(two):
        return one == two
    return abs(one - two) <= TOLERANCE * max(1.0, abs(two))
