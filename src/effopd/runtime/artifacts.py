"""Writing and reading what stages leave behind: atomic files, and manifests that stand for heavy artifacts."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from effopd.runtime.errors import ArtifactError
from effopd.runtime.fingerprints import digest, file_sha256

# Files up to this size are hashed whenever they are read; larger ones only by size (`effopd verify` hashes all).
HASH_ON_READ_BYTES = 256 * 2**20
RECORDED_PACKAGES = ("torch", "transformers", "deepspeed", "snakemake", "safetensors", "pandas", "numpy")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block succeeds: readers see all of it or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parse a JSON artifact. Raises ArtifactError where it is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist. Run the workflow to make it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Delete it and run the workflow again.") from None


@cache
def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "effopd": metadata.version("effopd")}
    for name in RECORDED_PACKAGES:
        versions[name] = metadata.version(name)
    return versions


@cache
def host_facts() -> dict[str, Any]:
    return {"platform": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()}


def fingerprint_of(kind: str, spec: Mapping[str, Any], parents: Mapping[str, str]) -> str:
    """What an artifact is: its kind, its stage's config slice and code digest, and its parents' fingerprints."""
    return digest({"kind": kind, "spec": dict(spec), "parents": dict(parents)})


@dataclass(frozen=True)
class Manifest:
    """A small JSON file that stands for an artifact, whose files lie beside it."""

    path: Path
    kind: str
    fingerprint: str
    spec: dict[str, Any]
    parents: dict[str, str]
    files: dict[str, dict[str, Any]]
    result: dict[str, Any]
    recorded: dict[str, Any]

    def file(self, name: str) -> Path:
        """The path of one of the artifact's files. Raises ArtifactError where it is not whole."""
        if name not in self.files:
            raise ArtifactError(f"{self.path} lists no file {name!r} (it lists {', '.join(self.files) or 'none'}).")
        self._check(name, hash_up_to=HASH_ON_READ_BYTES)
        return self.path.parent / name

    def problems(self) -> Iterator[str]:
        """Every way in which the artifact is not what its manifest says; reads all of its files."""
        for name in self.files:
            try:
                self._check(name, hash_up_to=sys.maxsize)
            except ArtifactError as error:
                yield str(error)

    def _check(self, name: str, hash_up_to: int) -> None:
        path, expected = self.path.parent / name, self.files[name]
        remedy = f"Delete {self.path} and run the workflow again: it makes this part anew."
        if not path.is_file():
            raise ArtifactError(f"{path} is missing. {remedy}")
        if (size := path.stat().st_size) != expected["size"]:
            raise ArtifactError(f"{path} is truncated or altered ({size} bytes, not {expected['size']}). {remedy}")
        if size <= hash_up_to and file_sha256(path) != expected["sha256"]:
            raise ArtifactError(f"{path} is altered (its sha256 is not the recorded one). {remedy}")


def write_manifest(
    path: str | Path,
    *,
    kind: str,
    spec: Mapping[str, Any],
    parents: Mapping[str, str],
    files: Mapping[str, Path] | None = None,
    result: Mapping[str, Any] | None = None,
    cost: Sequence[Mapping[str, Any]] = (),
    started: float,
) -> Manifest:
    """Write the manifest of an artifact whose files are complete: last, and atomically.

    `files` maps names to paths in the manifest's folder; `started` is the `time.time()` at which the stage began;
    `cost` are rows of the cost ledger. Wall times and host facts go under `recorded`: nothing else in a manifest
    differs between two runs of one plan.
    """
    path = Path(path)
    entry: dict[str, Any] = {
        "kind": kind,
        "fingerprint": fingerprint_of(kind, spec, parents),
        "spec": dict(spec),
        "parents": dict(parents),
        "files": {
            name: {"size": file.stat().st_size, "sha256": file_sha256(file)} for name, file in (files or {}).items()
        },
        "result": dict(result or {}),
        "recorded": {
            "seconds": round(time.time() - started, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "cost": list(cost),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": package_versions(),
            "host": host_facts(),
        },
    }
    write_json(path, entry)
    return Manifest(path=path, **entry)


def read_manifest(path: str | Path, kind: str | None = None) -> Manifest:
    """Read a manifest and check that it is whole, of the kind expected, and that its fingerprint is its own.

    Raises ArtifactError, with the remedy, where it is not.
    """
    path = Path(path)
    entry = read_json(path)
    wanted = {"kind", "fingerprint", "spec", "parents", "files", "result", "recorded"}
    if not isinstance(entry, dict) or set(entry) != wanted:
        raise ArtifactError(f"{path} is not a manifest. Delete it and run the workflow again.")
    manifest = Manifest(path=path, **entry)
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path} is a {manifest.kind!r} artifact where a {kind!r} is needed.")
    if fingerprint_of(manifest.kind, manifest.spec, manifest.parents) != manifest.fingerprint:
        raise ArtifactError(
            f"{path}: its fingerprint {manifest.fingerprint} does not match what it records. It was edited or copied "
            "from elsewhere; delete it and run the workflow again."
        )
    return manifest
