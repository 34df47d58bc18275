"""The final answer of a completion, as models are asked to write it: in a LaTeX box."""

from __future__ import annotations

import re

MARKS = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""What the last complete `\boxed{...}` holds, its braces balanced; None where there is none.

    Of nested boxes the inner one counts; one that is never closed, such as at the length limit, does not. Takes time
    in proportion to the text, whatever the text.
    """
    pending: list[tuple[int, bool]] = []  # where each open brace's content starts, and whether it is a box
    last: tuple[int, int] | None = None
    for mark in MARKS.finditer(text):
        if mark["box"] or mark["open"]:
            pending.append((mark.end(), bool(mark["box"])))
        elif mark["close"] and pending:
            start, is_box = pending.pop()
            if is_box and (last is None or start > last[0]):
                last = start, mark.start()
    return None if last is None else text[slice(*last)].strip()
