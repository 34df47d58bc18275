"""What jobs do with models, in GPU seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from effopd.evaluation.flops import UPDATE_PASSES
from effopd.extrapolation.gate import BLIND
from effopd.extrapolation.modules import FACTORS, KINDS
from effopd.specs.extrapolation import LINE_BY_MODULE
from effopd.workflow.estimates.architecture import Architecture
from effopd.workflow.estimates.hardware import Hardware
from effopd.workflow.job_specs import Plan

DERIVATIVE_PASSES = 5  # forward passes that a product with the curvature is worth: forward mode 2, backward 3


@dataclass(frozen=True)
class Work:
    """Jobs on some GPUs: seconds, times their number. Completions of at most `limit` tokens are shorter on average."""

    hardware: Hardware
    prompt: float  # mean tokens of a prompt
    share: float  # mean length of completions, as a share of their limit

    @classmethod
    def of(cls, plan: Plan, gpus: int) -> Work:
        """Jobs of a plan that share that many GPUs."""
        assumed = plan.config["estimate"]
        return cls(Hardware.of(assumed, gpus), assumed["prompt_tokens"], assumed["completion_share"])

    def alone(self, model: Architecture) -> Work:
        """The same in a job that shares its work with no other GPU, as gates and evaluations are."""
        return replace(self, hardware=self.hardware.alone(model))

    def generate(self, model: Architecture, sequences: float, limit: float) -> float:
        """One completion of each of so many prompts."""
        return self.hardware.count * self.hardware.decode(model, sequences, self.prompt, self.share * limit, limit)

    def forward(self, model: Architecture, sequences: float, limit: float) -> float:
        """A forward pass over so many sequences."""
        length = self.prompt + self.share * limit
        return self.hardware.count * self.hardware.compute(sequences * length * model.forward_flops(length))

    def update(self, model: Architecture, sequences: float, limit: float) -> float:
        """Forward and backward passes over so many sequences."""
        return UPDATE_PASSES * self.forward(model, sequences, limit)

    def measure(self, student: Architecture, teacher: Architecture, sequences: float, limit: float) -> float:
        """Completions, and their exact reverse KL to the teacher, as in effopd.evaluation.measure."""
        scored = self.forward(student, sequences, limit) + self.forward(teacher, sequences, limit)
        return self.generate(student, sequences, limit) + scored

    def gate(
        self,
        settings: Mapping[str, Any],
        student: Architecture,
        teacher: Architecture,
        *,
        rollouts: float,
        horizon: float,
        limit: float,
    ) -> float:
        """One search by the settings of an extrapolation, every candidate tried: about as many as a line search takes.

        `rollouts`, of up to `horizon` tokens, are those that the step trained on; fresh completions have up to `limit`.
        """
        gate, trials = settings["gate"], 1 + len(settings["coefficients"])
        if settings["search"] == LINE_BY_MODULE:
            trials += len(FACTORS) * (len(KINDS) + 1)
        if gate["metric"] in BLIND:
            return 0.0
        if gate["source"] == "rollouts":  # the teacher is asked once
            judged = min(gate["examples"], rollouts)
            asked = self.forward(teacher, judged, horizon)
            return trials * self.forward(student, judged, horizon) + asked
        judged = gate["examples"] * gate["samples"]
        if gate["metric"] == "accuracy":
            return trials * self.generate(student, judged, limit)
        return trials * self.measure(student, teacher, judged, limit)
