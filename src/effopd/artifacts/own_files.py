"""What lies in a folder itself, and not behind a link: nothing else there is ever deleted."""

from __future__ import annotations

import re
import stat
from pathlib import Path

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")


def is_own(path: Path, root: Path) -> bool:
    """Whether `path`, written as one below `root`, is a regular file that is reached from there without any link."""
    try:
        parts = path.relative_to(root).parts
    except ValueError:
        return False
    if not parts or ".." in parts:
        return False
    here, kinds = root, []
    try:
        for part in parts:
            here = here / part
            kinds.append(here.lstat().st_mode)
    except (OSError, ValueError):  # nothing there, or nothing that could be there
        return False
    return all(map(stat.S_ISDIR, kinds[:-1])) and stat.S_ISREG(kinds[-1])


def delete_own(path: Path, root: Path) -> int:
    """Delete a file of a folder, as `is_own` has it; leave anything else alone. Returns the bytes freed."""
    if not is_own(path, root):
        return 0
    size = path.lstat().st_size
    path.unlink()
    return size


def numbered(folder: Path, file: str) -> dict[int, Path]:
    """The paths of `file` in the folders below `folder` that are named after a step, by step."""
    found = {int(path.parent.name): path for path in folder.glob(f"*/{file}") if _STEP.fullmatch(path.parent.name)}
    return dict(sorted(found.items()))
