"""Who may read what is written: everybody that the user's umask lets, also of files that libraries make private."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def share(path: Path) -> None:
    """Give a file the permissions that `open` gives a new one. Temporary files and safetensors are private at first."""
    path.chmod(0o666 & ~_umask())


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
