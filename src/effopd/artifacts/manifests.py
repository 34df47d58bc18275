"""Writing and reading what stages leave behind: atomic files, and manifests that stand for heavy artifacts."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from effopd.artifacts.fingerprints import digest, file_sha256
from effopd.artifacts.manifest_format import WHEN, check_manifest, check_record, check_seal, is_sealed, seal
from effopd.artifacts.own_files import delete_own, is_own, numbered
from effopd.artifacts.permissions import share
from effopd.common.errors import ArtifactError, PrunedError
from effopd.common.strict_json import read_json as read_json

# Files up to this size are hashed whenever they are read; larger ones only by size (`effopd verify` hashes all).
HASH_ON_READ_BYTES = 256 * 2**20
PRUNED = ".pruned.json"  # ends the name of the record of the files that were deleted on purpose
# What version 0.1 called these; results of it are read for one more release.
FORMER_FILES = {"decision.json": "ledger.json", "weight_analysis.json": "weights.json"}
FORMER_KINDS = {"ledger": "decision"}
RECORDED_PACKAGES = ("torch", "transformers", "deepspeed", "snakemake", "safetensors", "pandas", "numpy", "datasets",
                     "math-verify", "reasoning-gym")  # fmt: skip


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
        share(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, with sorted keys. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


@cache
def package_versions() -> dict[str, str]:
    """Versions of Python, of this package and of those of RECORDED_PACKAGES that are installed, by name."""
    versions = {"python": platform.python_version(), "effopd": metadata.version("effopd")}
    for name in RECORDED_PACKAGES:
        with suppress(metadata.PackageNotFoundError):  # the core does without some
            versions[name] = metadata.version(name)
    return versions


@cache
def host_facts() -> dict[str, Any]:
    """The machine that a manifest records: platform, architecture and number of CPUs."""
    return {"platform": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()}


def _now() -> str:
    return time.strftime(WHEN, time.gmtime())


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
        """The path of one of the artifact's files. Raises ArtifactError if it is not whole."""
        if name not in self.files:
            raise ArtifactError(f"{self.path} lists no file {name!r} (it lists {', '.join(self.files) or 'none'}).")
        self._check(name, hash_up_to=HASH_ON_READ_BYTES)
        return self.path.parent / name

    def problems(self) -> Iterator[str]:
        """Every way in which the artifact is not what its manifest says; reads all of its files.

        A file that was deleted on purpose is none.
        """
        for name in self.files:
            try:
                self._check(name, hash_up_to=sys.maxsize)
            except PrunedError:
                continue
            except ArtifactError as error:
                yield str(error)

    def present(self) -> list[str]:
        """The names of the files that are there, whole or not."""
        return [name for name in self.files if (self.path.parent / name).is_file()]

    def pruned(self) -> list[str]:
        """The names of the files that were deleted on purpose."""
        there, recorded = self.present(), self.record()["files"]
        return [name for name in self.files if name in recorded and name not in there]

    @property
    def sealed(self) -> bool:
        """Whether it has a digest, so that an edit is found; not so where an older version wrote it."""
        return is_sealed(self.recorded)

    @property
    def record_path(self) -> Path:
        return self.path.with_suffix(PRUNED)

    def record(self) -> dict[str, Any]:
        """The record of the files of this very artifact that were deleted on purpose. Empty if there is none."""
        if self.record_path.exists():
            entry = read_json(self.record_path)
            check_record(entry, self.record_path)
            if entry["fingerprint"] == self.fingerprint:
                return dict(entry)
        return {"fingerprint": self.fingerprint, "files": {}, "recorded": {}}

    def _check(self, name: str, hash_up_to: int) -> None:
        path, expected = self.path.parent / name, self.files[name]
        if not path.parent.resolve().is_relative_to(self.path.parent.resolve()):
            raise ArtifactError(
                f"{path} lies behind a link that leads out of {self.path.parent}. Put the folder there."
            )
        remedy = f"Delete {self.path} and run the workflow again: it makes this part anew."
        if not path.is_file():
            record = self.record()
            if name in record["files"]:
                policy, when = record["files"][name]["policy"], record["recorded"][name]
                raise PrunedError(f"{path} was pruned ({policy}, {when}). {_remedy(self)}")
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
    sha256: Mapping[str, str] | None = None,
    result: Mapping[str, Any] | None = None,
    cost: Sequence[Mapping[str, Any]] = (),
    started: float,
) -> Manifest:
    """Write the manifest of an artifact whose files are complete: last, and atomically.

    `files` maps names to paths in the manifest's folder; `sha256` are digests of theirs that are known already;
    `started` is the `time.time()` at which the stage began; `cost` are rows of the cost ledger. Wall times and host
    facts go under `recorded`: nothing else in a manifest differs between two runs of one plan. What was deleted of an
    earlier artifact here is forgotten.
    """
    path = Path(path)
    path.with_suffix(PRUNED).unlink(missing_ok=True)
    known = sha256 or {}
    entry: dict[str, Any] = {
        "kind": kind,
        "fingerprint": fingerprint_of(kind, spec, parents),
        "spec": dict(spec),
        "parents": dict(parents),
        "files": {
            name: {"size": file.stat().st_size, "sha256": known.get(name) or file_sha256(file)}
            for name, file in (files or {}).items()
        },
        "result": dict(result or {}),
        "recorded": {
            "seconds": round(time.time() - started, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "cost": list(cost),
            "finished": _now(),
            "versions": package_versions(),
            "host": host_facts(),
        },
    }
    entry = seal(json.loads(json.dumps(entry, allow_nan=False)))  # as it will be read back
    write_json(path, entry)
    return Manifest(path=path, **entry)


def read_manifest(path: str | Path, kind: str | None = None) -> Manifest:
    """Read a manifest and check its form, that it is of the kind expected, and that nothing in it was edited.

    Whatever reads a manifest does so here. Raises ArtifactError, with the remedy, if it is not valid.
    """
    path = held_at(path)
    entry = read_json(path)
    check_manifest(entry, path)
    manifest = Manifest(path=path, **entry)
    if kind is not None and FORMER_KINDS.get(manifest.kind, manifest.kind) != kind:
        raise ArtifactError(f"{path} is a {manifest.kind!r} artifact where a {kind!r} is needed.")
    if fingerprint_of(manifest.kind, manifest.spec, manifest.parents) != manifest.fingerprint:
        raise ArtifactError(
            f"{path}: its fingerprint {manifest.fingerprint} does not match what it records. It was edited or copied "
            "from elsewhere; delete it and run the workflow again."
        )
    check_seal(entry, path)
    return manifest


def held_at(path: str | Path) -> Path:
    """Where the manifest meant by `path` lies: there or, if only that exists, under the name that 0.1 gave it."""
    path = Path(path)
    former = path.with_name(FORMER_FILES.get(path.name, path.name))
    return former if former.is_file() and not path.exists() else path


def release(manifest: Manifest, names: Collection[str], policy: str) -> int:
    """Delete files of an artifact on purpose, for the reason `policy`. Returns the bytes freed.

    They are written down first, beside the manifest: from then on `effopd verify` accepts that they are gone, and a
    stage that asks for one says how to have it made again. The manifest stays as it is, for what was made from it would
    be made again if it changed. Names of files that are not there are passed over, and so are links.
    """
    folder = manifest.path.parent
    there = [name for name in manifest.files if name in names and is_own(folder / name, folder)]
    if there:
        record = manifest.record()
        record["files"] = record["files"] | {name: {**manifest.files[name], "policy": policy} for name in there}
        record["recorded"] = record["recorded"] | dict.fromkeys(there, _now())
        write_json(manifest.record_path, record)
    return sum(delete_own(folder / name, folder) for name in there)


def _remedy(manifest: Manifest) -> str:
    """How to have an artifact with a released file made again.

    A state is trained from an earlier one of its run, so all states since the last whole one have to go.
    """
    folder, name = manifest.path.parent, manifest.path.name
    steps: list[int] = []
    if manifest.kind == "state" and folder.name.isdecimal():
        there = [step for step in numbered(folder.parent, name) if step <= int(folder.name)]
        for step in reversed(there):
            if _is_whole(folder.parent / str(step) / name):
                break
            steps.insert(0, step)
    if len(steps) < 2:
        return f"To have it back, delete {manifest.path} and run the workflow again: it makes this part anew."
    together = steps == list(range(steps[0], steps[-1] + 1))
    which = f"{steps[0]}..{steps[-1]}" if together else ",".join(map(str, steps))
    return (
        f"To have it back, delete {folder.parent}/{{{which}}}/{name} and run the workflow again: "
        "it trains from the last whole state on."
    )


def _is_whole(path: Path) -> bool:
    try:
        manifest = read_manifest(path)
    except ArtifactError:
        return False
    return len(manifest.present()) == len(manifest.files)
