"""The finished parts of a job that is not finished, from which it goes on after a kill."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from effopd.artifacts.manifests import write_text


def _entry(line: bytes) -> tuple[str, Any] | None:
    """A finished part and its value; None if the line is damaged."""
    try:
        entry = json.loads(line.decode())
        return str(entry["part"]), entry["value"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class Journal:
    """A file with a line a finished part, valid for one fingerprint: parts of anything else are dropped.

    Values are JSON, in which floats come back bitwise, NaN and infinity too.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.parts: dict[str, Any] = {}
        header = json.dumps({"fingerprint": fingerprint})
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        if lines[:1] == [header.encode()]:
            entries = [*itertools.takewhile(lambda entry: entry is not None, map(_entry, lines[1:-1]))]
            self.parts = dict(filter(None, entries))
            whole = lines[: 1 + len(entries)]
        else:
            whole = [header.encode()]
        write_text(path, "".join(f"{line.decode()}\n" for line in whole))

    def add(self, part: str, value: Any) -> None:
        """Write down a finished part."""
        self.parts[part] = value
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"part": part, "value": value}) + "\n")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
