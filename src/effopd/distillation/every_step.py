"""Extrapolation after every step, inside the job that does the step (`extrapolation.triggers: every_step`).

Each update is a ray of its own: from the weights that the step started from, whose rollouts it was made from. The gate
judges candidates on these very rollouts, so nothing is generated, and a step costs a few forward passes more.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from effopd.artifacts.cost import cost_row
from effopd.common.progress import say
from effopd.data.rollouts import Rollouts
from effopd.data.sharding import Share
from effopd.distillation.step_artifacts import Rows
from effopd.extrapolation.candidates import candidate, delta_norms, moving_or_refuse
from effopd.extrapolation.gate import BLIND, GateValue, blind_value, gate_rows
from effopd.extrapolation.modules import LINE_BY_MODULE, by_module, refine
from effopd.extrapolation.search import first_step, search
from effopd.models.lm_head import restrict, tokens_of
from effopd.models.models import Weights, dtype_of, load_model, load_weights_into
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
        extrapolation: dict[str, Any],
        training: dict[str, Any],
        *,
        trainer: Trainer,
        student: Path,
        teacher: Callable[[], PreTrainedModel],
        pad_id: int,
        seed: int,
        previous: float,
        device: torch.device,
    ) -> None:
        self.settings, self.gate, self.seed, self.previous = extrapolation, extrapolation["gate"], seed, previous
        self.trainer, self.pad_id, self.batch_size = trainer, pad_id, training["batch_size"]
        self.temperature = training["temperature"]
        self.anchor = trainer.weights(everywhere=True)
        self.moving = moving_or_refuse(self.anchor, extrapolation["parameters"])
        self.refines = extrapolation["search"] == LINE_BY_MODULE
        self.modules = by_module(self.moving) if self.refines else {"": self.moving}
        if self.gate["metric"] not in BLIND:
            self.probe = load_model(student, device, dtype_of(training["precision"]))
            restrict(self.probe, tokens_of(trainer.model))
            self.teacher = teacher()

    def __call__(self, rollouts: Rollouts, step: int) -> tuple[dict[str, Any], Rows]:
        """Extrapolate along the update that the trainer has just made of `rollouts`. Returns metrics and costs.

        Metrics: the accepted `coefficient` (0: none), `update_norm` (Frobenius, of the moving parameters), and in the
        order of the search, beginning with the weights as they are (coefficient 0), `trial_coefficients` and
        `trial_values`: the gate's metric, NaN where it is not finite; `accepted_coefficients`: those that displaced the
        best so far. Of a search by module also `coefficient_<module>`, and how many more candidates that took,
        `module_trials`.
        """
        started = time.perf_counter()
        current = self.trainer.weights(everywhere=True)
        chosen = rollouts.select(gate_rows(self.seed, "rollouts", len(rollouts), self._examples(rollouts), 1))
        share = Share(self.trainer.rank, self.trainer.ranks)
        mine = chosen.select(share.rows(len(chosen), self.batch_size))
        divergence = None
        if self.gate["metric"] not in BLIND:
            divergence = ReverseKL(
                self.teacher,
                mine,
                pad_id=self.pad_id,
                batch_size=self.batch_size,
                temperature=self.temperature,
                shared_tokens=chosen.completion_tokens,
            )
        values: dict[float, float] = {}

        def judged(coefficients: Mapping[str, float]) -> GateValue:
            assert divergence is not None
            load_weights_into(self.probe, self._candidate(current, coefficients))
            rows = [float(row.sum(dtype=np.float64)) for row in divergence.of(self.probe)] if len(mine) else []
            value = sum(itertools.chain(*self.trainer.gather(rows))) / chosen.completion_tokens
            return GateValue(value, -value)

        def score(coefficient: float) -> float:
            if divergence is None:
                found = blind_value(self.gate["metric"], self.seed, step, coefficient)
            else:
                found = judged(dict.fromkeys(self.modules, coefficient))
            values[coefficient] = found.value
            return found.score

        outcome = search(
            "line" if self.refines else self.settings["search"],
            score,
            score(0.0),
            self.settings["coefficients"],
            self.settings["accept"],
            first_step(self.previous),
        )
        if outcome.warning and self.trainer.first:
            say(f"warning: step {step}: {outcome.warning}")
        coefficients, refined = dict.fromkeys(self.modules, outcome.coefficient), 0
        if self.refines:
            coefficients, refined = refine(
                lambda trial: judged(trial).score, outcome, self.modules, self.settings["accept"]
            )
        norm = delta_norms(current, self.anchor, self.moving)["moving"]
        if outcome.coefficient != 0:
            current = self._candidate(current, coefficients)
            self.trainer.load_weights(current)
            self.trainer.rescale_optimizer_state(self.settings["moments"], outcome.coefficient)
        self.anchor, self.previous = current, outcome.coefficient
        scored = judged_tokens = 0
        if divergence is not None:
            scored = int(self.trainer.sum_over_ranks(divergence.scored_tokens))
            judged_tokens = chosen.completion_tokens * (len(values) + refined)
        cost = cost_row("gate: score", step, time.perf_counter() - started, scored=scored, judged=judged_tokens)
        own = {f"coefficient_{module}": value for module, value in coefficients.items()} | {"module_trials": refined}
        return {
            "coefficient": outcome.coefficient,
            "update_norm": norm,
            "trial_coefficients": list(values),
            "trial_values": list(values.values()),
            "accepted_coefficients": [trial.coefficient for trial in outcome.trials if trial.accepted],
            **(own if self.refines else {}),
        }, [cost]

    def _examples(self, rollouts: Rollouts) -> int:
        return min(self.gate["examples"], len(rollouts))

    def _candidate(self, current: Weights, coefficients: Mapping[str, float]) -> Weights:
        for module, coefficient in coefficients.items():
            if coefficient:
                current = candidate(current, self.anchor, coefficient, self.modules[module])
        return current
