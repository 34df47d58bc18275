"""Re-checking a results folder: every manifest, every file it lists, and the chain of fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from effopd.runtime.artifacts import Manifest, read_manifest
from effopd.runtime.errors import ArtifactError

PATTERNS = (
    "data/*/manifest.json",
    "models/*/manifest.json",
    "runs/*/seed*/state/*/state.json",
    "runs/*/seed*/extrapolation/*/*.json",
    "evaluation/models/*.json",
    "evaluation/*/seed*/*.json",
)


def verify(results: Path) -> tuple[int, list[str]]:
    """The number of manifests in a results folder, and one line for each thing wrong with them.

    Hashes every listed file. An artifact whose parents are not in the folder, or are there with another fingerprint,
    was made from something else than what lies beside it.
    """
    paths = sorted(path for pattern in PATTERNS for path in results.glob(pattern))
    manifests, problems = [], []
    for path in paths:
        try:
            manifests.append(read_manifest(path))
        except ArtifactError as error:
            problems.append(str(error))
    known = {manifest.fingerprint for manifest in manifests}
    for manifest in manifests:
        problems += manifest.problems()
        problems += _orphaned(manifest, known)
    return len(paths), problems


def _orphaned(manifest: Manifest, known: set[str]) -> Iterator[str]:
    for name, fingerprint in manifest.parents.items():
        if fingerprint not in known:
            yield (
                f"{manifest.path} was made from a {name} with fingerprint {fingerprint}, which is not in this folder. "
                "Run the workflow again: it makes what is out of date anew."
            )
