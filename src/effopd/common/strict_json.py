"""JSON that may have been damaged or written by others: read strictly, or refused in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from effopd.common.errors import ArtifactError
from effopd.common.formatting import one_line

_LONGEST_INTEGER = 300  # digits: a float can still hold it


class Entry(dict[str, Any]):
    """A JSON object. Asking it for a key that it lacks raises ArtifactError, which names the file."""

    source: object = "the JSON"

    def __missing__(self, key: str) -> NoReturn:
        raise ArtifactError(f"{self.source} has no `{key}` where one is needed. Delete it and run the workflow again.")


def parse_json(text: str | bytes, source: object) -> Any:
    """The value of a JSON text, its objects as `Entry`.

    Raises ArtifactError, which names `source`, unless it is UTF-8 and JSON whose keys are unique and whose numbers are
    finite; also if it is nested too deeply or holds half a surrogate pair.
    """

    def object_of(pairs: Iterable[tuple[str, Any]]) -> Entry:
        found = Entry()
        found.source = source
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} is there twice")
            found[key] = value
        return found

    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=object_of, parse_float=_finite, parse_int=_integer, parse_constant=_refuse
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise _damaged(source, "nested too deeply") from None
    except ValueError as error:
        raise _damaged(source, one_line(error, 200)) from None
    return value


def read_json(path: str | Path) -> Any:
    """Parse a JSON artifact strictly. Raises ArtifactError if it is missing, no regular file or damaged."""
    return parse_json(read_regular(Path(path)), path)


def read_regular(path: Path) -> bytes:
    """The content of a regular file, or of the one that a link leads to; never waits for a pipe.

    Raises ArtifactError if there is none, OSError if it cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} does not exist. Run the workflow to make it.") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # links in a circle; a socket
            raise _no_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file(path)
    with open(descriptor, "rb") as handle:
        return handle.read()


def _no_file(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} is not a regular file. Move it away and run the workflow again.")


def _damaged(source: object, reason: str) -> ArtifactError:
    return ArtifactError(f"{source} is damaged ({reason}). Delete it and run the workflow again.")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        _refuse(text)
    return value


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        _refuse(text)
    return int(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:30]} is not finite or too large")
