"""Gates that other packages add: functions of what is measured of the weights (docs/plugins.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.artifacts.cost import cost_row
from effopd.common.errors import ConfigError
from effopd.common.registry import find
from effopd.data.prompts import Prompts
from effopd.data.rollouts import Rollouts
from effopd.data.verification import verify_rollouts
from effopd.engines.base import RolloutEngine
from effopd.extrapolation.gate import GateValue, gate_seeds
from effopd.models.models import Weights, load_weights_into, special_ids
from effopd.specs.engines import Sampling
from effopd.specs.extrapolation import GateSettings
from effopd.tasks.base import Problem, Task
from effopd.teachers.scoring import ReverseKL, measure_logprobs


class Measured:
    """What a gate can ask of the weights that it judges. Nothing is computed before it is asked for.

    `rollouts` are N completions: the weights' own answers to `problems` or, with `source: rollouts`, those that the
    step was trained on; then there are no problems and no rewards. A row of each list is of the same completion.
    """

    def __init__(self, gate: AddedGate, rollouts: Rollouts, problems: Sequence[Problem] | None) -> None:
        self._gate, self.rollouts, self.problems = gate, rollouts, problems
        self.scored = self.judged = 0  # tokens that the teacher, and these weights, were asked about

    @cached_property
    def rewards(self) -> list[float]:
        """The verifier's reward of each completion, from 0 to 1."""
        if self.problems is None:
            raise ConfigError(
                f"config: `gate.metric` is {self._gate.metric!r}, which asks for rewards, and the source `rollouts` "
                "has none. Write `source: train` or `source: validation`."
            )
        verdicts = verify_rollouts(self._gate.task, self._gate.tokenizer, self.problems, self.rollouts)
        return list(verdicts["reward"])

    @cached_property
    def student_logprobs(self) -> list[np.ndarray]:
        """log pi of each completion's tokens by the weights, at the rollouts' temperature: N float32 arrays."""
        if self.problems is not None:
            return self.rollouts.logprobs
        self.judged += self.rollouts.completion_tokens
        return self._logprobs(self._gate.model, self._gate.sampling.temperature)

    @cached_property
    def teacher_logprobs(self) -> list[np.ndarray]:
        """log pi of each completion's tokens by the teacher, at temperature 1: N float32 arrays."""
        if self._gate.taught is not None:
            return self._gate.taught
        self.scored += self.rollouts.completion_tokens
        found = self._logprobs(self._gate.teacher, 1.0)
        if self.problems is None:  # the same rollouts are judged again
            self._gate.taught = found
        return found

    @cached_property
    def reverse_kl(self) -> list[np.ndarray]:
        """The exact KL(student || teacher) at each completion's tokens, in nats: N float32 arrays."""
        divergence = self._gate.divergence_of(self.rollouts)
        before = divergence.scored_tokens
        found = divergence.of(self._gate.model)
        self.scored += divergence.scored_tokens - before
        self.judged += self.rollouts.completion_tokens
        return found

    def _logprobs(self, model: PreTrainedModel, temperature: float) -> list[np.ndarray]:
        return measure_logprobs(model, self.rollouts, temperature=temperature, **self._gate.batches)


@dataclass
class AddedGate:
    """Judges weights by a function of `Measured` and its options, which returns a GateValue.

    `engine` answers problems; None if the step's own rollouts are judged. `settings` is `extrapolation.gate`.
    """

    settings: GateSettings
    seed: int
    step: int
    sampling: Sampling
    source: Prompts | Rollouts
    weights: Callable[[], Weights]
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    task: Task
    load_teacher: Callable[[], PreTrainedModel]
    engine: RolloutEngine | None = None
    taught: list[np.ndarray] | None = None  # what the teacher says of the step's own rollouts, once it was asked
    _divergence: ReverseKL | None = None
    _costs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def metric(self) -> str:
        return self.settings.metric

    @cached_property
    def teacher(self) -> PreTrainedModel:
        return self.load_teacher()

    @property
    def batches(self) -> dict[str, int]:
        return {"pad_id": special_ids(self.tokenizer)[1], "batch_size": len(self.source)}

    def divergence_of(self, rollouts: Rollouts) -> ReverseKL:
        """The exact reverse KL at these rollouts; of the step's own the teacher is asked once."""
        if self._divergence is None or rollouts is not self.source:
            again, temperature = rollouts is self.source, self.sampling.temperature
            self._divergence = ReverseKL(
                self.teacher, rollouts, temperature=temperature, remember=again, **self.batches
            )
        return self._divergence

    def judge(self, coefficient: float) -> GateValue:
        self._costs = []
        entry, problems = find("gates", self.metric), None
        if isinstance(self.source, Rollouts):
            load_weights_into(self.model, self.weights())
            rollouts = self.source
        else:
            rollouts, problems = self._answers(self.source, coefficient), self.source.problems
        if not all(np.isfinite(row).all() for row in rollouts.logprobs):
            return GateValue(math.nan, math.nan, cost=self._costs)
        measured, started = Measured(self, rollouts, problems), time.perf_counter()
        found = entry.load()(measured, **self.settings.options)
        if not isinstance(found, GateValue):
            raise ConfigError(f"{entry} returned {found!r}. It has to return a GateValue (docs/plugins.md).")
        if measured.scored or measured.judged:
            tokens = {"scored": measured.scored, "judged": measured.judged}
            self._costs.append(cost_row("gate: score", self.step, time.perf_counter() - started, **tokens))
        return GateValue(float(found.value), float(found.score), [float(item) for item in found.per_item], self._costs)

    def _answers(self, prompts: Prompts, coefficient: float) -> Rollouts:
        assert self.engine is not None
        self.engine.load_weights(self.weights())
        seeds = gate_seeds(self.seed, self.step, coefficient, len(prompts), self.settings.paired)
        started = time.perf_counter()
        rollouts = self.engine.generate(prompts.tokens, seeds, self.sampling)
        seconds = time.perf_counter() - started
        self._costs.append(cost_row("gate: generate", self.step, seconds, generated=rollouts.completion_tokens))
        return rollouts
