"""The door to transformers, which fails on odd files with every type of error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from effopd.common.errors import ArtifactError, UserError
from effopd.common.formatting import one_line


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar for each of hundreds of loads."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    yield


@contextmanager
def reading(folder: str | Path, what: str) -> Iterator[None]:
    """Raise ArtifactError, saying that `folder` is not `what`, if transformers fails on its files."""
    try:
        with quiet():
            yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ArtifactError(f"{folder} is not {what}: {type(error).__name__}: {one_line(error, 500)}") from error
