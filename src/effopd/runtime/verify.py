"""Re-checking a results folder: every manifest, every file it lists, and the chain of fingerprints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from effopd.plan import Plan
from effopd.runtime.artifacts import PRUNED, Manifest, read_manifest
from effopd.runtime.errors import ArtifactError
from effopd.runtime.inventory import Inventory

PATTERNS = (
    "data/*/manifest.json",
    "data/*/prompts-*/manifest.json",
    "models/*/manifest.json",
    "runs/*/seed*/rollouts/*.json",
    "runs/*/seed*/scores/*.json",
    "runs/*/seed*/state/*/state.json",
    "runs/*/seed*/extrapolation/**/*.json",
    "evaluation/models/*.json",
    "evaluation/*/seed*/*.json",
    "evaluation/tasks/*/models/*.json",
    "evaluation/tasks/*/*/seed*/*.json",
    "validation/*/seed*/*.json",
    "predictions/*/seed*/*/prediction.json",
    "dynamics/*/*/*.json",
    "dynamics/models/*/linearized-*/manifest.json",
)


def verify(results: Path, plan: Plan | None = None) -> tuple[int, int, list[str]]:
    """The numbers of manifests and of pruned files in a results folder, and one line for each thing wrong with them.

    Hashes every listed file. An artifact whose parents are not in the folder, or are there with another fingerprint,
    was made from something else than what lies beside it. A file that was deleted on purpose is not wrong. With a plan,
    whatever it would make otherwise today is wrong too: Snakemake cannot see that once its records are lost.
    """
    found = (path for pattern in PATTERNS for path in results.glob(pattern))
    paths = sorted(path for path in found if not path.name.endswith(PRUNED))
    manifests, problems, pruned = [], [], 0
    for path in paths:
        try:
            manifests.append(read_manifest(path))
        except ArtifactError as error:
            problems.append(str(error))
    known = {manifest.fingerprint for manifest in manifests}
    for manifest in manifests:
        problems += manifest.problems()
        problems += _orphaned(manifest, known)
        pruned += len(manifest.pruned())
    if plan is not None:
        problems += _outdated(results, plan)
    return len(paths), pruned, problems


def _orphaned(manifest: Manifest, known: set[str]) -> Iterator[str]:
    for name, fingerprint in manifest.parents.items():
        if fingerprint not in known:
            yield (
                f"{manifest.path} was made from a {name} with fingerprint {fingerprint}, which is not in this folder. "
                f"Delete {manifest.path} and run the workflow again: it makes this part anew."
            )


def _outdated(results: Path, plan: Plan) -> Iterator[str]:
    for holding in Inventory(results, plan).holdings():
        if holding.manifest is not None and holding.outdated:
            path = holding.manifest.path
            yield (
                f"{path} is not what the configuration and code would make now. "
                f"Delete it and run the workflow again: it makes this part anew."
            )
