"""Re-checking a results folder: every manifest, every file it lists, and the chain of fingerprints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from effopd.artifacts.manifests import PRUNED, Manifest, read_manifest
from effopd.common.errors import ArtifactError
from effopd.results.expected_artifacts import Inventory
from effopd.workflow.job_specs import Plan

PATTERNS = (
    "data/*/manifest.json",
    "data/*/prompts-*/manifest.json",
    "models/*/manifest.json",
    "samples/*/manifest.json",
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


@dataclass
class Verified:
    """What a check found: the numbers of manifests, of pruned files and of manifests without a digest; and problems."""

    artifacts: int
    pruned: int = 0
    unsealed: int = 0  # written by an older version: of them, not every edit can be found
    problems: list[str] = field(default_factory=list)


def verify(results: Path, plan: Plan | None = None) -> Verified:
    """Check every manifest in a results folder and every file that it lists; one line for each problem.

    Hashes every listed file. An artifact whose parents are not in the folder, or are there with another fingerprint,
    was made from something else than what lies beside it. A file that was deleted on purpose is not wrong. With a plan,
    whatever it would make otherwise today is wrong too: Snakemake cannot see that once its records are lost.
    """
    for _ in os.walk(results, onerror=_raise_if_denied):
        pass  # what cannot be read is not passed over: what was made from it would seem to be wrong
    found = (path for pattern in PATTERNS for path in results.glob(pattern))
    paths = sorted({path for path in found if not path.name.endswith(PRUNED)})
    verified, manifests = Verified(len(paths)), []
    for path in paths:
        try:
            manifests.append(read_manifest(path))
        except ArtifactError as error:
            verified.problems.append(str(error))
    known = {manifest.fingerprint for manifest in manifests}
    for manifest in manifests:
        verified.problems += manifest.problems()
        verified.problems += _orphaned(manifest, known)
        try:
            verified.pruned += len(manifest.pruned())
        except ArtifactError as error:  # the record is damaged
            verified.problems.append(str(error))
        verified.unsealed += not manifest.sealed
    if plan is not None:
        verified.problems += _outdated(results, plan)
    verified.problems = [*dict.fromkeys(verified.problems)]
    return verified


def _raise_if_denied(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise error


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
