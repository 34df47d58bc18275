"""Offline extrapolation: weights predicted from a run's kept states, as far ahead as a gate allows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effopd.artifacts.manifests import Manifest, read_manifest, write_manifest
from effopd.common.errors import ArtifactError
from effopd.common.progress import say
from effopd.common.registry import load
from effopd.dynamics.kept import Kept
from effopd.dynamics.reconstruction import along, update
from effopd.extrapolation.candidates import delta_norms, moving_or_refuse
from effopd.extrapolation.driver import extrapolate
from effopd.extrapolation.predictors import Trajectory
from effopd.models.models import Weights, save_tensors
from effopd.specs.triggers import PredictWeights
from effopd.stages.evaluate_candidates import gate_source, opened_gate
from effopd.training.checkpoints import WEIGHTS


def predict_weights(
    spec: PredictWeights,
    *,
    base: Path,
    teacher: Path,
    prompts: Path,
    states: Sequence[Path],
    decisions: Sequence[Path],
    validations: Sequence[Path],
    out: Path,
    device: torch.device,
) -> None:
    """Predict weights from the states at spec.states, and write the manifest `out` and the weights beside it.

    The search asks the gate about the method's prediction at each coefficient it tries; 0 is the last state as it is.
    `validations` are evaluations of the base and of these states, for a method that asks for accuracies. Raises
    ArtifactError where the states or evaluations are others, ConfigError if no parameter is meant to move.
    """
    started = time.time()
    settings = spec.extrapolation
    kept = Kept.open(base, states, decisions)
    if list(kept.trained) != list(spec.states):
        raise ArtifactError(f"the states given are of steps {list(kept.trained)}, and {list(spec.states)} are needed.")
    accuracies, validated = _accuracies(kept, [read_manifest(path, "evaluation") for path in validations])
    predictor = Predictor(kept, spec.method, spec.options, settings.parameters, accuracies)
    prompts_manifest, teacher_manifest = read_manifest(prompts, "prompts"), read_manifest(teacher, "model")
    source = gate_source(spec, prompts_manifest, states)
    with opened_gate(spec, source, base, teacher, device, predictor.weights) as gate:
        decision = extrapolate(predictor, gate, settings, warn="warning: ")
    weights = out.with_name(WEIGHTS)
    save_tensors(weights, predictor.weights())
    write_manifest(
        out,
        kind="prediction",
        spec=spec.content,
        parents={
            **kept.parents,
            **{f"validation {manifest.result['step']}": manifest.fingerprint for manifest in validated},
            "prompts": prompts_manifest.fingerprint,
            "teacher": teacher_manifest.fingerprint,
        },
        files={weights.name: weights},
        result=decision.record(spec.step, metric=settings.gate.metric, update_norm=predictor.update_norm()),
        cost=[*_costs(validated), *decision.costs],
        started=started,
    )
    say(f"done: {decision}")


class Predictor:
    """Predicted weights of one trajectory, whatever the coefficient; reads the states a parameter at a time."""

    modules = ("all",)

    def __init__(
        self,
        kept: Kept,
        method: str,
        options: Mapping[str, Any],
        parameters: str,
        accuracies: dict[int, float] | None,
    ) -> None:
        self.kept, self.accuracies = kept, accuracies
        self.predict = partial(load("predictors", method).predict, **options)
        self.parameters = kept.parameters()
        names = [parameter.name for parameter in self.parameters]
        self.moving = set(moving_or_refuse(names, parameters, "`parameters` of a prediction"))
        self.coefficient = 0.0

    def put(self, coefficients: Mapping[str, float]) -> None:
        (self.coefficient,) = coefficients.values()

    def weights(self) -> Weights:
        """The weights that the method predicts where they were put; at 0 the last state's."""
        found = {}
        for parameter in self.parameters:
            last = self.kept.read(self.kept.last, parameter)
            if self.coefficient != 0 and parameter.name in self.moving:
                base = self.kept.read(0, parameter)
                updates = {step: update(base, self.kept.read(step, parameter)).numpy() for step in self.kept.trained}
                predicted = self.predict(Trajectory.of(updates, self.accuracies), self.coefficient)
                last = along(base, torch.from_numpy(predicted))
            found[parameter.name] = last
        return found

    def update_norm(self) -> dict[str, float]:
        """Frobenius norms of the last state's update since the base: of all parameters, and of those that move."""
        first, last = ({p.name: self.kept.read(step, p) for p in self.parameters} for step in (0, self.kept.last))
        return delta_norms(last, first, self.moving)


def _accuracies(kept: Kept, validations: Sequence[Manifest]) -> tuple[dict[int, float] | None, list[Manifest]]:
    """Accuracies by step, and the evaluations that say so, in order.

    None if the method asks for none. Raises ArtifactError if an evaluation is of other weights.
    """
    if not validations:
        return None, []
    by_step = {int(manifest.result["step"]): manifest for manifest in validations}
    for step in (0, *kept.trained):
        own = kept.parents["base" if step == 0 else f"state {step}"]
        if step not in by_step or by_step[step].parents["state"] != own:
            raise ArtifactError(f"no evaluation given is of the weights after step {step}. Run the workflow again.")
    ordered = [by_step[step] for step in (0, *kept.trained)]
    return {int(manifest.result["step"]): float(manifest.result["accuracy"]) for manifest in ordered}, ordered


def _costs(validations: Sequence[Manifest]) -> list[dict[str, Any]]:
    """What the evaluations took: a prediction that rests on them pays for them, as for its gate."""
    return [{**row, "stage": "gate: validate"} for manifest in validations for row in manifest.recorded["cost"]]
