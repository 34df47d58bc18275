"""What single values get wrong wherever they stand: text that no output can hold, numbers that print alike."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from effopd.common.formatting import shortened

PROMPT_KEYS = (".template", ".system", ".user", ".assistant")  # whose text may have several lines


def text_problems(value: Any, key: str = "") -> Iterator[str]:
    """Control characters in text, which files, tables and figures cannot hold; prompts alone may have several lines."""
    if isinstance(value, str):
        allowed = "\n\t" if key.endswith(PROMPT_KEYS) else ""
        wrong = next((c for c in value if unicodedata.category(c) in ("Cc", "Cs") and c not in allowed), None)
        if wrong is not None:
            what = "a line break" if wrong in "\r\n" else f"the control character U+{ord(wrong):04X}"
            yield f"`{key}` is {shortened(repr(value), 120)}, which holds {what}. Write one line of plain text."
    elif isinstance(value, (Mapping, list)):
        inside = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, child in inside:
            yield from text_problems(child, f"{key}.{name}".lstrip("."))


def alike_problems(key: str, values: Sequence[float]) -> Iterator[str]:
    """Numbers that names of files, figures and draws cannot tell apart: these have six digits."""
    seen: dict[str, float] = {}
    for value in values:
        other = seen.setdefault(f"{value:g}", value)
        if other != value:
            yield f"{key} has {other!r} and {value!r}, which are alike to six digits. Drop one of them."
