"""Plain text for people: aligned tables, sizes and times."""

from __future__ import annotations

import re
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[object]], left: int = 1) -> list[str]:
    """Lines with the rows' cells in columns, two spaces apart: the first `left` flush left, the others flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def size_text(size: float) -> str:
    """A number of bytes in decimal units."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def duration_text(seconds: float) -> str:
    """A duration to two digits or so: seconds, minutes or hours."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def shortened(text: str, width: int) -> str:
    """The text, with an ellipsis for what does not fit the width."""
    return text if len(text) <= width else text[: width - 1] + "…"


def without_passwords(text: str) -> str:
    """The text without the user names and passwords in its URLs."""
    return re.sub(r"(://)\S*@", r"\1***@", text)


def printable(text: str) -> str:
    """The text with control characters and what no terminal can show escaped; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: object, longest: int = 2000) -> str:
    """A message on one line that any terminal can show: no line breaks, no control characters, not endless.

    Without passwords in URLs: it may go to a log that others read.
    """
    return shortened(printable(without_passwords(" ".join(str(text).split()))), longest)
