"""A file in a Python package, as the configuration names one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

# What a line of a requirements file takes, and nothing that would be more than a name or a version there.
NAME, VERSION = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", r"[A-Za-z0-9][A-Za-z0-9.!+_-]*"
SHA256 = r"[0-9a-f]{64}"


def package_problems(place: str, package: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a model's `package`, whose key is `place`: a line for each."""
    name, version, sha256, file = (package[key] for key in ("name", "version", "sha256", "file"))
    if not re.fullmatch(NAME, name):
        yield f"`{place}.name` is {name!r}, which no package is called. Write its name alone."
    if not re.fullmatch(VERSION, version):
        yield f"`{place}.version` is {version!r}, which is no version. Write one, such as 0.1.2."
    if not re.fullmatch(SHA256, sha256):
        yield f"`{place}.sha256` is {sha256!r}. Write that of the wheel, 64 hexadecimal digits in lower case."
    if not is_plain_member(file) or not file.lower().endswith(".gguf"):
        yield (
            f"`{place}.file` is {file!r}, which names no GGUF file in a wheel. Write its path there, such as "
            "folder/model.gguf."
        )


def is_plain_member(name: str) -> bool:
    """Whether a name is a path inside an archive that cannot lead out of it."""
    return "\\" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
