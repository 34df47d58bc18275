"""The final answer of a completion, as models are asked to write it: in a LaTeX box."""

from __future__ import annotations

import re
from collections.abc import Iterator

MARKS = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def boxes(text: str) -> Iterator[tuple[int, int]]:
    r"""Where the content of each complete `\boxed{...}` begins and ends, its braces balanced.

    One that is never closed, such as at the length limit, does not count. Takes time in proportion to the text,
    whatever the text.
    """
    pending: list[tuple[int, bool]] = []  # where each open brace's content starts, and whether it is a box
    for mark in MARKS.finditer(text):
        if mark["box"] or mark["open"]:
            pending.append((mark.end(), bool(mark["box"])))
        elif mark["close"] and pending:
            start, is_box = pending.pop()
            if is_box:
                yield start, mark.start()


def last_boxed(text: str) -> str | None:
    """What the last complete box holds; None if there is none. Of nested boxes the inner one counts."""
    last = max(boxes(text), default=None)
    return None if last is None else text[slice(*last)].strip()
