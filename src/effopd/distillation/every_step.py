"""Extrapolation after every step, inside the job that does the step (`extrapolation.triggers: every_step`).

Each update is a ray of its own: from the weights that the step started from, whose rollouts it was made from. The gate
judges candidates on these very rollouts, so nothing is generated, and a step costs a few forward passes more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from effopd.artifacts.cost import cost_row
from effopd.data.rollouts import Rollouts
from effopd.data.sharding import Shard
from effopd.distillation.step_artifacts import Rows
from effopd.evaluation.rollout_gate import RolloutGate
from effopd.extrapolation.candidates import RayInMemory, moving_or_refuse
from effopd.extrapolation.driver import extrapolate
from effopd.extrapolation.gate import BLIND, BlindGate, Gate, gate_rows
from effopd.extrapolation.modules import by_module
from effopd.models.lm_head import restrict, tokens_of
from effopd.models.models import dtype_of, load_model, release_weights
from effopd.specs.extrapolation import ExtrapolationSettings
from effopd.specs.segments import TrainingSettings
from effopd.teachers.scoring import ReverseKL
from effopd.training.trainer import Trainer


class StepExtrapolation:
    """Extrapolates along each update of a trainer, right after it.

    `student` is a model folder, for a model that tries candidates beside the one in training; `teacher` gives the model
    that they are compared with, and is called unless the gate looks at no weights. `previous` is the coefficient that
    the step before was extrapolated by: a line search starts there. Made before the first step, for all ranks together.
    """

    def __init__(
        self,
        extrapolation: ExtrapolationSettings,
        training: TrainingSettings,
        *,
        moments: str,
        trainer: Trainer,
        student: Path,
        teacher: Callable[[], PreTrainedModel],
        pad_id: int,
        seed: int,
        previous: float,
        device: torch.device,
    ) -> None:
        self.settings, self.moments, self.seed, self.previous = extrapolation, moments, seed, previous
        self.trainer, self.pad_id, self.batch_size = trainer, pad_id, training.batch_size
        self.temperature = training.temperature
        self.anchor = trainer.weights(everywhere=True)
        self.modules = by_module(moving_or_refuse(self.anchor, extrapolation.parameters))
        if extrapolation.gate.metric not in BLIND:
            self.probe = load_model(student, device, dtype_of(training.precision))
            restrict(self.probe, tokens_of(trainer.model))
            release_weights(self.probe)  # an update has the memory to itself
            self.teacher = teacher()

    def __call__(self, rollouts: Rollouts, step: int) -> tuple[dict[str, Any], Rows]:
        """Extrapolate along the update that the trainer has just made of `rollouts`. Returns metrics and costs.

        Metrics: the accepted `coefficient` (0: none), `tie`: whether it scored as the weights as they are,
        `update_norm` (Frobenius, of the moving parameters), and in the order of the search, beginning with the weights
        as they are (coefficient 0), `trial_coefficients` and `trial_values`: the gate's metric, NaN where it is not
        finite; `accepted_coefficients`: those that displaced the best so far. Of a search by module also
        `coefficient_<module>`, and how many more candidates that took, `module_trials`.
        """
        started = time.perf_counter()
        ray = RayInMemory(self.trainer.weights(everywhere=True, borrowed=True), self.anchor, self.modules)
        warn = f"warning: step {step}: " if self.trainer.first else None
        decision = extrapolate(ray, self._gate(ray, rollouts, step), self.settings, previous=self.previous, warn=warn)
        norm, self.previous = ray.update_norm()["moving"], decision.coefficient
        for name, tensor in self.anchor.items():  # the next step's, in the place of this one's
            tensor.copy_(ray.tensor(name))
        if decision.coefficient != 0:
            self.trainer.load_weights(self.anchor)
            self.trainer.rescale_optimizer_state(self.moments, decision.coefficient)
        metrics = {
            "coefficient": decision.coefficient,
            "tie": decision.tie,
            "update_norm": norm,
            "trial_coefficients": list(decision.values),
            "trial_values": [value.value for value in decision.values.values()],
            "accepted_coefficients": [trial.coefficient for trial in decision.result.trials if trial.accepted],
        }
        if self.settings.refines:
            metrics |= {f"coefficient_{module}": value for module, value in decision.coefficients.items()}
            metrics["module_trials"] = decision.module_trials
        scored = int(self.trainer.sum_over_ranks(sum(row["scored_tokens"] for row in decision.costs)))
        judged = sum(row["judged_tokens"] for row in decision.costs)
        return metrics, [cost_row("gate: score", step, time.perf_counter() - started, scored=scored, judged=judged)]

    def _gate(self, ray: RayInMemory, rollouts: Rollouts, step: int) -> Gate:
        settings = self.settings.gate
        if settings.metric in BLIND:
            return BlindGate(settings.metric, self.seed, step)
        examples = min(settings.examples, len(rollouts))
        chosen = rollouts.select(gate_rows(self.seed, "rollouts", len(rollouts), examples, 1))
        shard, tokens = Shard(self.trainer.rank, self.trainer.ranks), chosen.completion_tokens
        divergence = ReverseKL(
            self.teacher,
            chosen.select(shard.rows(len(chosen), self.batch_size)),
            pad_id=self.pad_id,
            batch_size=self.batch_size,
            temperature=self.temperature,
            shared_tokens=tokens,
        )
        return RolloutGate(
            self.probe, ray.weights, divergence, step=step, tokens=tokens, gather=self.trainer.gather, lent=True
        )
