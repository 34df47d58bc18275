"""Freeing what no job of the plan needs any more, and writing down what was freed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from effopd.artifacts.locks import claim_results, held_folders, look_at_claim
from effopd.artifacts.manifests import Manifest, release
from effopd.artifacts.own_files import delete_own, is_own, numbered
from effopd.common.errors import ArtifactError, UserError
from effopd.common.formatting import aligned, shortened, size_text
from effopd.extrapolation.schedule import checkpoint_steps
from effopd.results.expected_artifacts import Inventory, manifest_at, manifests_below
from effopd.training.early_stopping import BEST
from effopd.workflow.job_specs import Plan
from effopd.workflow.snakemake_log import jobs_of

WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"  # as effopd.training.checkpoints, which needs torch
PARTS = "parts"  # as effopd.data.responses, which needs torch
_SHARD = re.compile(r"(step\d+)\.shard\d+of\d+\.json")


@dataclass
class Freed:
    """What one clause of the policy frees: files that a manifest lists, and files that belong to none."""

    policy: str
    results: Path
    listed: list[tuple[Manifest, list[str]]] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)
    linked: list[Path] = field(default_factory=list)  # what it would free, did no link lead there

    def add(self, manifest: Manifest, names: Iterable[str]) -> None:
        folder = manifest.path.parent
        if there := [name for name in names if name in manifest.present() and self._may_delete(folder / name)]:
            self.listed.append((manifest, there))

    def add_loose(self, paths: Iterable[Path]) -> None:
        self.loose += [path for path in sorted(paths) if self._may_delete(path)]

    def _may_delete(self, path: Path) -> bool:
        if path.is_dir() and not path.is_symlink():
            return False
        if not is_own(path, self.results):
            self.linked.append(path)
            return False
        return True

    @property
    def paths(self) -> list[Path]:
        return [manifest.path.parent / name for manifest, names in self.listed for name in names] + self.loose

    @property
    def size(self) -> int:
        return sum(map(_size, self.paths))


def prune(results: Path, optimizers: int, apply: bool) -> list[str]:
    """Find what the retention policy frees and, with `apply`, free it. Returns lines that say what.

    Kept are the weights of all kept states, and the optimizer moments of the last `optimizers` triggers of each run and
    seed (of the kept states, where a run has no triggers) and wherever training may have to go on. Scores that hold
    more than sampled tokens (top-k, hidden states) go once their segment is trained. Only regular files below
    `results` go: none that is a link, or that a link leads to. Raises UserError if there is no results folder, or
    where a workflow or one of its jobs is at work on it.
    """
    plan = Plan.of_results(results)
    if not apply:
        claim = look_at_claim(results)
        found = plan_pruning(results, plan, optimizers, parts=not (claim and claim.running))
        return [*_table(results, found), "Nothing was deleted: `effopd prune --apply` does it."]
    with claim_results(results):
        if held := held_folders(results):
            raise UserError(f"a job whose workflow has ended is still writing {held[0]}. Wait for it or stop it.")
        found = plan_pruning(results, plan, optimizers, parts=True)
        lines = _table(results, found)
        for path in (path for freed in found for path in freed.loose):  # first: records need a little space
            delete_own(path, results)
        for freed in found:
            for manifest, names in freed.listed:
                release(manifest, names, freed.policy)
    return [*lines, "Deleted. What was deleted of an artifact is on record beside its manifest, in *.pruned.json."]


def plan_pruning(results: Path, plan: Plan, optimizers: int, parts: bool) -> list[Freed]:
    """What the policy frees, clause by clause; `parts` says whether unfinished writes are nobody's any more."""
    moments = Freed(f"optimizer moments before the last {optimizers} triggers", results)
    between = Freed("states between kept ones", results)
    shards = Freed("shards of steps that are put together", results)
    wide = Freed("wide scores of trained steps", results)
    resumes = Freed("resume points of finished jobs", results)
    predicted = Freed("weights of predictions that are evaluated", results)
    unfinished = Freed("unfinished writes of dead jobs", results)
    inventory, interrupted = Inventory(results, plan), _interrupted(results)
    for run in plan.runs:
        for seed in plan.seeds:
            folder = results / f"runs/{run}/seed{seed}"
            there = {step: path for step, path in numbered(folder / "state", "state.json").items()
                     if path.absolute() not in interrupted}  # fmt: skip
            states = {step: state for step, path in there.items() if (state := manifest_at(path)) is not None}
            kept = _steps_with_optimizer(inventory, run, seed, sorted(states), optimizers)
            for step, state in states.items():
                if step in plan.boundaries(run):
                    moments.add(state, [] if step in kept else [OPTIMIZER])
                elif step < max(states):
                    between.add(state, [WEIGHTS, OPTIMIZER])
            for kind in ("rollouts", "scores"):
                for shard in manifests_below(folder, f"{kind}/*.shard*.json"):
                    if _is_put_together(shard):
                        shards.add(shard, _own_names(shard))
            if plan.runs[run]["training"]["objective"]["support"] != "sampled":
                for scores in manifests_below(folder, "scores/step*.json"):
                    step = scores.spec["step"]
                    end = next((b for b in plan.boundaries(run) if b >= step), None)
                    if "shard" not in scores.spec and end is not None and inventory.states[run, seed, end].current:
                        wide.add(scores, _own_names(scores))
    for place, evaluation in inventory.prediction_evaluations.items():
        if (prediction := inventory.predictions[place].manifest) is not None and evaluation.current:
            predicted.add(prediction, [WEIGHTS])
    for pattern, finished in (("models/*", "manifest.json"), ("runs/*/seed*/state/*", "state.json")):
        for folder in sorted(path.parent for path in results.glob(f"{pattern}/{finished}")):
            resumes.add_loose([*folder.glob("resume.safetensors"), *folder.glob(f"{BEST}/*")])
    for manifest in manifests_below(results, "samples/*/manifest.json"):
        resumes.add_loose((manifest.path.parent / PARTS).glob("*"))
    if parts:
        unfinished.add_loose(results.rglob(".*.part"))
    return [moments, between, shards, wide, predicted, resumes, unfinished]


def _steps_with_optimizer(inventory: Inventory, run: str, seed: int, there: list[int], optimizers: int) -> set[int]:
    """The kept states, of those `there`, from which a run and seed may have to go on, now or after a change.

    These are the last triggers, the last state and the last one that stays a kept state when `training.steps` is
    raised; and whichever state is up to date while the next one is not.
    """
    plan = inventory.plan
    triggers, boundaries = plan.triggers(run), plan.boundaries(run)
    kept_there = [step for step in there if step in boundaries]
    if not kept_there:
        return set()
    chosen = [step for step in kept_there if step in triggers] or kept_there
    lasting = {*checkpoint_steps(plan.runs[run]["training"]["checkpoint_steps"], boundaries[-1]), *triggers}
    kept = {*chosen[-optimizers:], kept_there[-1], *[step for step in kept_there if step in lasting][-1:]}
    for step, following in itertools.pairwise(boundaries):
        done = following in there and inventory.states[run, seed, following].current
        if inventory.states[run, seed, step].current and not done:
            kept.add(step)
    return kept


def _interrupted(results: Path) -> set[Path]:
    """What jobs of the last workflow were making when it ended: there or not, Snakemake makes it again."""
    claim, folder = look_at_claim(results), results.absolute().parent
    jobs = jobs_of(claim.log if claim else None)
    return {folder / output for job in jobs.running.values() for output in job.outputs}


def _own_names(manifest: Manifest) -> list[str]:
    """The files that are named after their manifest, as those of a step are: it shares a folder with other steps'."""
    return [name for name in manifest.files if name.startswith(f"{manifest.path.stem}.")]


def _is_put_together(shard: Manifest) -> bool:
    """Whether the step that a shard is part of has its one whole artifact."""
    match = _SHARD.fullmatch(shard.path.name)
    whole = manifest_at(shard.path.with_name(f"{match[1]}.json")) if match else None
    if whole is None or whole.spec != {key: value for key, value in shard.spec.items() if key != "shard"}:
        return False
    if any(whole.parents.get(name) != value for name, value in shard.parents.items() if name != "rollouts"):
        return False
    try:
        return all(whole.file(name).is_file() for name in whole.files)
    except ArtifactError:
        return False


def _table(results: Path, found: list[Freed]) -> list[str]:
    rows: list[tuple[object, ...]] = [("to be freed", "files", "size")]
    rows += [(freed.policy, len(freed.paths), size_text(freed.size)) for freed in found]
    total = sum(freed.size for freed in found)
    rows.append(("total", sum(len(freed.paths) for freed in found), size_text(total)))
    held = sum(map(_size, results.rglob("*")))
    linked = [path for freed in found for path in freed.linked]
    left = [f"Left alone, for links lead there: {shortened(', '.join(map(str, linked)), 300)}."] if linked else []
    return [*aligned(rows), f"{results} holds {size_text(held)}, and {size_text(held - total)} without these.", *left]


def _size(path: Path) -> int:
    """Bytes of a file; 0 of what is none, or none any more where a workflow is at work."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0
