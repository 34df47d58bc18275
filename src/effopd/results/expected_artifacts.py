"""What a results folder holds of what its plan asks for."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effopd.artifacts.manifests import Manifest, read_manifest
from effopd.common.errors import ArtifactError
from effopd.workflow.job_specs import Plan

Place = tuple[str, int, int]  # run, seed, step


@dataclass(frozen=True)
class Holding:
    """An artifact that the plan asks for: its manifest, if there is a readable one, and whether it is up to date.

    Up to date: its spec is what the plan would ask for now, and everything that it was made from is up to date too.
    """

    manifest: Manifest | None
    current: bool

    @property
    def outdated(self) -> bool:
        return self.manifest is not None and not self.current


class Inventory:
    """The artifacts of a plan by what they are of. Reads manifests only, not the files that they stand for."""

    def __init__(self, results: Path, plan: Plan) -> None:
        self.results, self.plan = results, plan
        # Fingerprints of what is up to date: of data and models, and of each run and seed. Runs that differ in
        # extrapolation alone share a first state, so that of another run is not this one's.
        self._known: dict[tuple[str, int] | None, set[str]] = {None: set()}
        data = f"data/{plan.task_name}"
        self.data = self._hold(f"{data}/manifest.json", plan.spec("make_data"))
        self.models: dict[str, Holding] = {}
        self.prompts: dict[str, Holding] = {}
        self.samples: dict[str, Holding] = {}
        for model in sorted(plan.config["models"], key=self._generation):
            if sample := plan.samples_of(model):
                spec = plan.spec("sample_responses", sample=sample)
                self.samples[sample] = self._hold(f"samples/{sample}/manifest.json", spec)
            spec = plan.spec(plan.model_stage(model), model=model)
            self.models[model] = self._hold(f"models/{model}/manifest.json", spec)
            spec = plan.spec("tokenize_prompts", model=model)
            self.prompts[model] = self._hold(f"{data}/prompts-{model}/manifest.json", spec)
        self.model_evaluations = {
            model: self._hold(f"evaluation/models/{model}.json", plan.evaluate_model_spec())
            for model in plan.config["models"]
        }
        # Of other tasks, by task or by task and whatever is evaluated on it.
        self.task_data: dict[str, Holding] = {}
        self.task_prompts: dict[tuple[str, str], Holding] = {}
        self.task_evaluations: dict[tuple[str, str | Place], Holding] = {}
        for task in plan.other_tasks:
            self._take_in_task(task)
        self.states: dict[Place, Holding] = {}
        self.decisions: dict[Place, Holding] = {}
        self.evaluations: dict[Place, Holding] = {}
        for run, seed, step in plan.points():
            self._take_in(run, seed, step)
        for task, place in itertools.product(plan.other_tasks, plan.last_points()):
            self._take_in_task_evaluation(task, *place)
        self.validations: dict[Place, Holding] = {}  # of states behind predictions, the base's at step 0
        self.predictions: dict[Place, Holding] = {}  # by prediction, seed and step
        self.prediction_evaluations: dict[Place, Holding] = {}
        for prediction, seed, step in plan.predicted_points():
            self._take_in_prediction(prediction, seed, step)
        self.dynamics: dict[tuple[str, str], Holding] = {}
        for subject in plan.dynamics_subjects():
            self._take_in_dynamics(subject)

    def _generation(self, model: str) -> int:
        return max((1 + self._generation(behind) for behind in self.plan.models_behind(model)), default=0)

    def _take_in(self, run: str, seed: int, step: int) -> None:
        place, own, folder = (run, seed, step), (run, seed), f"runs/{run}/seed{seed}"
        where = {"run": run, "seed": seed, "step": step}
        self._known.setdefault(own, set(self._known[None]))
        triggers = self.plan.triggers(run)
        after_jump = self.plan.previous_boundary(run, step) in triggers
        self.states[place] = self._hold(
            f"{folder}/state/{step}/state.json", self.plan.spec("train_segment", **where), own, decision=after_jump
        )
        if step in triggers:
            spec = self.plan.spec("evaluate_candidates", **where)
            trigger = self.results / f"{folder}/extrapolation/{step}"
            for path in (trigger / "candidates.json", *trigger.glob("candidates/*.json")):
                self._hold(str(path.relative_to(self.results)), spec, own)
            spec = self.plan.spec("select_candidate", **where)
            self.decisions[place] = self._hold(f"{folder}/extrapolation/{step}/decision.json", spec, own)
        spec = self.plan.evaluate_run_spec(run)
        self.evaluations[place] = self._hold(
            f"evaluation/{run}/seed{seed}/{step}.json", spec, own, decision=step in triggers
        )

    def _take_in_task(self, task: str) -> None:
        """Another task's data and, of every model, prompts and evaluation."""
        folder = f"data/{task}"
        self.task_data[task] = self._hold(f"{folder}/manifest.json", self.plan.spec("make_data", task=task))
        for model in self.plan.config["models"]:
            spec = self.plan.spec("tokenize_prompts", task=task, model=model)
            self.task_prompts[task, model] = self._hold(f"{folder}/prompts-{model}/manifest.json", spec)
            spec = self.plan.evaluate_model_spec(task=task)
            self.task_evaluations[task, model] = self._hold(f"evaluation/tasks/{task}/models/{model}.json", spec)

    def _take_in_task_evaluation(self, task: str, run: str, seed: int, step: int) -> None:
        self.task_evaluations[task, (run, seed, step)] = self._hold(
            f"evaluation/tasks/{task}/{run}/seed{seed}/{step}.json",
            self.plan.evaluate_run_spec(run, task=task),
            (run, seed),
            decision=step in self.plan.triggers(run),
        )

    def _take_in_prediction(self, prediction: str, seed: int, step: int) -> None:
        """A prediction from the states of its run up to a step, the validations it asks for, and its evaluation."""
        run, place = self.plan.predicted_from(prediction), (prediction, seed, step)
        own, triggers = (run, seed), self.plan.triggers(run)
        for validated in self.plan.validated_behind(prediction, step):
            self.validations[run, seed, validated] = self._hold(
                f"validation/{run}/seed{seed}/{validated}.json",
                self.plan.evaluate_run_spec(run, split="validation"),
                own,
                decision=validated in triggers,
            )
        spec = self.plan.spec("predict_weights", prediction=prediction, seed=seed, step=step)
        found = self._hold(f"predictions/{prediction}/seed{seed}/{step}/prediction.json", spec, own)
        behind = {f"state {s}" for s in self.plan.states_behind(prediction, step)}
        behind |= {f"decision {s}" for s in triggers if s <= step}
        behind |= {f"validation {s}" for s in self.plan.validated_behind(prediction, step)}
        self.predictions[place] = _made_from(found, behind)
        spec = self.plan.evaluate_run_spec(run)
        self.prediction_evaluations[place] = self._hold(f"evaluation/{prediction}/seed{seed}/{step}.json", spec, own)

    def _take_in_dynamics(self, subject: str) -> None:
        """What is known of the weights of a subject: of all kept states, or it is out of date."""
        folder, name = subject.split("/")
        own, states, decisions = None, set(), set()
        if folder != "models":
            own = (folder, int(name.removeprefix("seed")))
            states = {f"state {step}" for step in self.plan.boundaries(folder)}
            decisions = {f"decision {step}" for step in self.plan.triggers(folder)}
        for stage, file in (("analyze_weights", "weight_analysis"), ("evaluate_interventions", "interventions")):
            if stage == "evaluate_interventions" and not self.plan.config["dynamics"]["interventions"]:
                continue
            found = self._hold(f"dynamics/{subject}/{file}.json", self.plan.spec(stage, subject=subject), own)
            self.dynamics[subject, file] = _made_from(found, states | decisions)

    def _hold(self, name: str, spec: str, own: tuple[str, int] | None = None, decision: bool | None = None) -> Holding:
        """What is at `name`, of the run and seed `own`, or of none.

        `decision` says whether it has to be made from a decision, None that it does not matter.
        """
        manifest = manifest_at(self.results / name)
        if manifest is None:
            return Holding(None, False)
        current = self._fits(manifest, json.loads(spec), own)
        if decision is not None and ("decision" in manifest.parents) != decision:
            current = False
        if current:
            self._known[own].add(manifest.fingerprint)
        return Holding(manifest, current)

    def _fits(
        self, manifest: Manifest, spec: Mapping[str, Any], own: tuple[str, int] | None, besides: Iterable[str] = ()
    ) -> bool:
        """Whether a manifest has this spec (and perhaps more) and parents, some `besides`, that are up to date."""
        parents = {name: value for name, value in manifest.parents.items() if name not in besides}
        return spec.items() <= manifest.spec.items() and self._known[own].issuperset(parents.values())

    def steps_done(self, run: str, seed: int) -> int:
        """How many steps are trained: up to the last kept state, and those after it whose scores are there.

        A step is trained right after its rollouts are scored; after a kill it is replayed from them.
        """
        boundaries = self.plan.boundaries(run)
        done = max((step for step in boundaries if self.states[run, seed, step].current), default=0)
        for step in range(done + 1, boundaries[-1] + 1):
            manifest = manifest_at(self.results / f"runs/{run}/seed{seed}/scores/step{step}.json")
            end = min(b for b in boundaries if b >= step)
            segment = json.loads(self.plan.spec("train_segment", run=run, seed=seed, step=end))
            del segment["end"]
            if manifest is None or not self._fits(manifest, {**segment, "step": step}, (run, seed), ["rollouts"]):
                return step - 1
        return boundaries[-1]

    def holdings(self) -> list[Holding]:
        """All of them."""
        groups = (self.models, self.prompts, self.samples, self.model_evaluations, self.states, self.decisions,
                  self.evaluations, self.validations, self.predictions, self.prediction_evaluations, self.task_data,
                  self.task_prompts, self.task_evaluations, self.dynamics)  # fmt: skip
        return [self.data, *(holding for group in groups for holding in group.values())]

    def of_run(self, holdings: Mapping[Place, Holding], run: str, seed: int) -> list[Holding]:
        """Those of a run and seed, by step."""
        return [holding for (r, s, _), holding in holdings.items() if (r, s) == (run, seed)]


def _made_from(found: Holding, wanted: set[str]) -> Holding:
    """The same, out of date where what it was made from, at the steps of a run, is not all of `wanted`."""
    there = {name for name in found.manifest.parents if name[-1].isdigit()} if found.manifest else set()
    return Holding(found.manifest, found.current and there == wanted)


def manifest_at(path: Path) -> Manifest | None:
    """The manifest at a path; None if there is none that can be read (`effopd verify` says why)."""
    try:
        return read_manifest(path)
    except ArtifactError:
        return None


def manifests_below(folder: Path, pattern: str) -> Iterator[Manifest]:
    """The readable manifests among the files of a folder that a pattern matches, by path."""
    for path in sorted(folder.glob(pattern)):
        if (manifest := manifest_at(path)) is not None:
            yield manifest
