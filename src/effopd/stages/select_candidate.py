"""The decision at a trigger: replays the search over the recorded gate values and writes what training goes on from."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effopd.artifacts.manifests import Manifest, read_manifest, write_manifest
from effopd.common.errors import ArtifactError
from effopd.common.progress import say
from effopd.extrapolation.driver import extrapolate
from effopd.extrapolation.gate import GateValue
from effopd.models.models import save_tensors
from effopd.specs.triggers import SelectCandidate
from effopd.stages.evaluate_candidates import ray_of
from effopd.training.checkpoints import DECISION_WEIGHTS, Point


def select_candidate(
    spec: SelectCandidate,
    *,
    state: Path,
    anchor: Path,
    anchor_decision: Path | None,
    candidates: Sequence[Path],
    out: Path,
) -> None:
    """Write the decision `out` of the trigger at spec.step and, if a candidate is accepted, its weights beside it.

    `candidates` is what `evaluate_candidates` wrote, once or for each coefficient; the latter are put together first,
    as if they had been scored in turn. Raises ArtifactError if the candidates were scored for another state, or lack a
    value that the search needs.
    """
    started = time.time()
    settings = spec.extrapolation
    point, anchor_point = Point.open(state), Point.open(anchor, anchor_decision)
    manifests = [read_manifest(path, "candidates") for path in candidates]
    for manifest in manifests:
        if manifest.parents["state"] != point.manifest.fingerprint:
            raise ArtifactError(f"{manifest.path} was scored for another state than {state}. Delete it and run again.")
    recorded = _Recorded(manifests)
    decision = extrapolate(recorded, recorded, settings, warn="warning: ")
    scored = manifests[0]
    if "coefficient" in scored.spec:
        entries = [recorded.entries[coefficient] for coefficient in decision.values]
        scored = _put_together(manifests, entries, out, started)
    files = {}
    if decision.coefficient != 0:
        ray = ray_of(point, anchor_point, settings)
        ray.put(dict.fromkeys(ray.modules, decision.coefficient))
        files[DECISION_WEIGHTS] = out.parent / DECISION_WEIGHTS
        save_tensors(files[DECISION_WEIGHTS], ray.weights())
    metric = scored.spec["extrapolation"]["gate"]["metric"]
    result = decision.record(spec.step, metric=metric, update_norm=scored.result["update_norm"])
    parents = {"candidates": scored.fingerprint, **point.parents}
    parents |= {f"anchor {name}": value for name, value in anchor_point.parents.items()}
    cost = scored.recorded["cost"]
    write_manifest(
        out, kind="decision", spec=spec.content, parents=parents, files=files, result=result, cost=cost, started=started
    )
    say(f"done: {decision}")


class _Recorded:
    """What was said of candidates before, in place of their weights and of the gate."""

    modules = ("all",)

    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self.path = manifests[0].path
        self.entries = {entry["coefficient"]: entry for manifest in manifests for entry in manifest.result["values"]}

    def put(self, coefficients: Mapping[str, float]) -> None:
        """There are no weights to put anywhere."""

    def judge(self, coefficient: float) -> GateValue:
        if coefficient not in self.entries:
            raise ArtifactError(f"{self.path} has no value for coefficient {coefficient:g}. Delete it and run again.")
        return GateValue.from_entry(self.entries[coefficient])


def _put_together(manifests: list[Manifest], entries: list[dict[str, Any]], out: Path, started: float) -> Manifest:
    """The manifest that scoring in turn would have left, from one manifest a coefficient; all of them are paid for."""
    first = manifests[0]
    return write_manifest(
        out.with_name("candidates.json"),
        kind="candidates",
        spec={key: value for key, value in first.spec.items() if key != "coefficient"},
        parents=first.parents,
        result={**first.result, "values": entries},
        cost=[row for manifest in manifests for row in manifest.recorded["cost"]],
        started=started,
    )
