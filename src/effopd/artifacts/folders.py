"""Folders that the project writes: emptied, filled and made so that nothing is reached through a link.

Files are written into a new hidden folder and renamed into place, which replaces a link of that name and leaves what it
points to alone.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from effopd.artifacts.locks import LOCK, exclusive
from effopd.artifacts.permissions import share
from effopd.common.errors import UserError

_SIGNS = (LOCK, "manifest.json", ".digests.json")  # one of which is in each folder that a model was written to
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_no_link(folder: Path) -> None:
    """Raise UserError if a folder that is to be written is a link."""
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a link to {os.readlink(folder)}, and nothing is written through links. Delete the link, or "
            "give the folder itself."
        )


def check_place(folder: Path) -> None:
    """Raise UserError if a folder cannot be made because something else has its name, or that of one that it is in."""
    taken = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), folder)
    if os.path.lexists(taken) and not taken.is_dir():
        raise UserError(f"{folder} cannot be made: {taken} is no folder. Choose another folder.")


def check_own(
    folder: Path,
    signs: Collection[str] = _SIGNS,
    why: str = "a model's folder is emptied before it is written",
) -> None:
    """Raise UserError if a folder that is to be written cannot be, is a link, or holds files but none of `signs`.

    `why` says what would become of somebody else's files.
    """
    check_no_link(folder)
    check_place(folder)
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if held not in ([], [LOCK]) and not any((folder / name).is_file() for name in signs):
        raise UserError(
            f"{folder} holds files of somebody else's ({held[0]}), and {why}. Choose another folder, or move them away."
        )


def remove(path: Path) -> None:
    """Delete a file, a folder, or a link but not what it points to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def empty(folder: Path, keep: Collection[str] = ()) -> None:
    """Delete everything in a folder but its lock and the entries named in `keep`; links whatever their name."""
    for path in folder.iterdir():
        if path.is_symlink() or path.name not in (LOCK, *keep):
            remove(path)


@contextmanager
def filled(folder: Path, keep: Collection[str] | None = None) -> Iterator[Path]:
    """A new folder inside `folder`, whose contents are renamed into `folder` when the block succeeds.

    With `keep` all else in `folder` is deleted then, but for the entries named in `keep` and the lock. Raises OSError
    if something cannot be written, as `writing` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".new.", suffix=".part", dir=folder))
    try:
        with writing(folder):
            yield part
        if keep is not None:
            empty(folder, (*keep, part.name))
        for path in sorted(part.iterdir()):
            if path.is_file() and not path.is_symlink():
                with path.open("rb") as written:
                    os.fsync(written.fileno())
                share(path)
            else:
                remove(folder / path.name)  # which a folder cannot replace
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(part)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that becomes `out` when the block succeeds; what a killed run left is cleared.

    Raises UserError if `out` exists or is no name of a folder, or if the hidden folder's name is taken by something
    else; OSError if something cannot be written, as `writing` does.
    """
    if out.name in ("", ".."):
        raise UserError(f"{out} is no name for a new folder. Give one that ends with its name.")
    check_place(out.parent)
    _check_free(out, f"{out} exists already. Choose another folder, or delete it.")
    folder = out.absolute().with_name(f".{out.name}.part")
    if os.path.lexists(folder) and (folder.is_symlink() or not _is_left_over(folder)):
        raise UserError(f"{folder}, the name under which {out} is written, is taken. Move it away, or choose another.")
    with exclusive(folder):
        empty(folder)
        try:
            with writing(out):
                yield folder
        except BaseException:
            shutil.rmtree(folder)
            raise
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                share(path)
        (folder / LOCK).unlink()
        _check_free(out, f"{out} has appeared meanwhile. What was computed is in {folder}.")
        folder.rename(out)


def _check_free(out: Path, why_not: str) -> None:
    if os.path.lexists(out):
        raise UserError(why_not)


def _is_left_over(folder: Path) -> bool:
    """Whether a folder is what a killed run left: locked once, or nothing in it yet."""
    return folder.is_dir() and ((folder / LOCK).is_file() or not any(folder.iterdir()))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise OSError for `path` if a write fails, such as on a full disk.

    safetensors and tokenizers pass errors of the operating system on as text alone; copying names the file it reads.
    """
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if number is None or (isinstance(error, OSError) and number not in _FULL):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
