"""Errors that a user caused and can fix: one clear line, no traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message names the key or file, the value found and the remedy."""


class ConfigError(UserError):
    """A configuration that cannot be run."""


class ArtifactError(UserError):
    """A results file that is missing, truncated, altered or not the one expected."""


class PrunedError(ArtifactError):
    """A file that was deleted on purpose, and is on record as such."""


class DivergenceError(UserError):
    """Training produced a number that is not finite."""


class PreflightError(UserError):
    """Checks that failed before training, one line each."""


@contextmanager
def named_for(other_task: str | None) -> Iterator[None]:
    """Rewrite `task.*` keys in a UserError raised inside to those of another task's section.

    `other_task` is its name in `evaluation.tasks`, None for the task that is trained on.
    """
    try:
        yield
    except UserError as error:
        if other_task is not None:
            error.args = (str(error).replace("`task.", f"`evaluation.tasks.{other_task}.task."),)
        raise


def describe_os_error(error: OSError) -> str:
    """One line for a failure of the operating system: the file, the reason, and the remedy if there is one."""
    place = f" ({error.filename})" if error.filename else ""
    kept = "Everything finished so far is kept; run the same command again"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{place}. {kept} once there is space."
    if error.errno == errno.EROFS:
        return f"the results folder is on a read-only file system{place}. {kept} where it can be written."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"no permission{place}. {kept} once the permissions are fixed."
    reason = error.strerror or str(error) or type(error).__name__
    return f"{reason}{place}. {kept} once that is fixed."
