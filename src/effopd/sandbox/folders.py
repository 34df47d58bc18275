"""Folders: which a program may see, how much it has put into its own, and getting rid of that.

Imports the standard library alone: it runs in the sandbox's own interpreter.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

MOST_ENTRIES = 1024  # files and folders in a work folder
MOST_LEVELS = 64  # folders within folders


class TooMuchError(Exception):
    """A folder holds more entries, or more deeply nested ones, than a program may make."""


def is_below(path: str, folder: str) -> bool:
    """Whether `path` is `folder` or lies in it; both are resolved paths."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def without_hidden(readable: Iterable[str], hidden: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths that hold all of `readable` and nothing of `hidden`; and the folders that these stand for.

    A folder that holds something hidden is replaced by its other entries, links left out: where they lead may be
    hidden. A readable path within a hidden one stays. All paths are resolved ones.
    """
    shown: list[str] = []
    replaced: list[str] = []
    for path in readable:
        within = [other for other in hidden if is_below(other, path) and other != path]
        waiting = [path]
        while waiting:
            folder = waiting.pop()
            if folder in within:
                continue
            if not any(is_below(other, folder) for other in within):
                shown.append(folder)
                continue
            replaced.append(folder)
            with os.scandir(folder) as entries:
                waiting += [entry.path for entry in entries if not entry.is_symlink()]
    return shown, replaced


def size_of(folder: str) -> int:
    """Bytes on disk of all that a folder holds. Raises TooMuchError if it holds too many entries or too deep ones."""
    total = count = 0
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        try:
            entries = _entries(place)
        except OSError:
            continue  # it was removed meanwhile
        count += len(entries)
        if count > MOST_ENTRIES or depth > MOST_LEVELS:
            raise TooMuchError
        for entry in entries:
            try:
                facts = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            total += facts.st_blocks * 512
            if stat.S_ISDIR(facts.st_mode):
                waiting.append((entry.path, depth + 1))
    return total


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except PermissionError:  # its owner may have closed it
        os.chmod(folder, 0o700)
        with os.scandir(folder) as found:
            return list(found)


def remove(folder: str) -> None:
    """Remove a folder, however deep it is and whatever permissions it has. Follows no link.

    No program may write to it any more. Folders within are moved up to the top, so that paths stay short and nothing
    recurses. What cannot be removed is left.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        os.chmod(folder, 0o700)
        top = os.open(folder, flags)
    except OSError:
        return  # it is not there
    try:
        names = itertools.count()
        waiting = _emptied(top, top, names)
        while waiting:
            name = waiting.pop()
            try:
                place = os.open(name, flags, dir_fd=top)
                try:
                    waiting += _emptied(place, top, names)
                finally:
                    os.close(place)
                os.rmdir(name, dir_fd=top)
            except OSError:
                continue
        os.rmdir(folder)
    except OSError:
        pass
    finally:
        os.close(top)


def _emptied(place: int, top: int, names: Iterator[int]) -> list[str]:
    """Unlink the files of an open folder and move its folders to `top`; returns their new names there."""
    moved = []
    for name in os.listdir(place):
        try:
            if not stat.S_ISDIR(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=place)
                continue
            os.chmod(name, 0o700, dir_fd=place)  # it is no link
            new = f".removed-{next(names)}"
            os.rename(name, new, src_dir_fd=place, dst_dir_fd=top)
            moved.append(new)
        except OSError:
            continue
    return moved
