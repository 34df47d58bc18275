"""The finished parts of a job that is not finished, from which it goes on after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from effopd.runtime.artifacts import atomic_path


class Journal:
    """A file with a line a finished part, valid for one fingerprint: parts of anything else are dropped.

    Values are JSON, in which floats come back bitwise, NaN and infinity too.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.parts: dict[str, Any] = {}
        header = json.dumps({"fingerprint": fingerprint}).encode()
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        whole = [header]
        if lines[:1] == [header]:
            for line in lines[1:-1]:  # after the last newline there is nothing, or a line that a kill cut short
                try:
                    entry = json.loads(line)
                    self.parts[entry["part"]] = entry["value"]
                except (ValueError, TypeError, KeyError):
                    break  # damaged: this part and those after it are made again
                whole.append(line)
        with atomic_path(path) as temporary:  # which replaces a link
            temporary.write_bytes(b"\n".join(whole) + b"\n")

    def add(self, part: str, value: Any) -> None:
        """Write down a finished part."""
        self.parts[part] = value
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"part": part, "value": value}) + "\n")

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
