"""The student in training, from a point of a run, and who scores it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.artifacts.cost import cost_row
from effopd.common.registry import load
from effopd.config.runtime_options import endpoint_of
from effopd.data.rollouts import Rollouts
from effopd.distillation import step as distillation
from effopd.distillation.segment import Inputs
from effopd.distillation.step_artifacts import Rows
from effopd.engines.base import RolloutEngine, build_engine, longest_context
from effopd.models.lm_head import Head, KnownTokens, restricted
from effopd.models.models import dtype_of, load_frozen, load_model, load_tokenizer, model_with, special_ids
from effopd.specs.segments import SegmentSpec, TrainingSettings
from effopd.teachers.scoring import LocalTeacher, Scores, Teacher, WithReference
from effopd.training.trainer import Trainer, TrainerSettings

# Goes on from where an update has led, given its rollouts and step: metrics and costs (every_step.py).
Extrapolate = Callable[[Rollouts, int], tuple[dict[str, Any], Rows]]


class Learner:
    """The student with a point's weights, and what goes with it to generate and train."""

    def __init__(self, spec: SegmentSpec, inputs: Inputs, device: torch.device) -> None:
        self.spec, self.training = spec, spec.training
        self.inputs, self.point, self.device = inputs, inputs.point, device
        self.student, self.teacher = inputs.student.path.parent, inputs.teacher.path.parent
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(self.student)
        _, self.pad_id = special_ids(self.tokenizer)

    def policy_model(self) -> PreTrainedModel:
        """A model to generate with, in the precision of training."""
        return model_with(self.student, self.point.weights(), self.device, dtype_of(self.training.precision))

    def engine(self, prompts: Sequence[Sequence[int]], policy_model: PreTrainedModel) -> RolloutEngine:
        """An engine for completions of these prompts, which the caller closes."""
        context = longest_context(prompts, self.training.max_new_tokens)
        batch_size = self.training.batch_size
        return build_engine(self.spec.engine, policy_model, self.tokenizer, batch_size=batch_size, context=context)

    def scorer(self) -> Teacher:
        """Who scores rollouts as the objective needs it."""
        return teacher_of(self.training, self.student, self.teacher, self.tokenizer, self.device)

    @cached_property
    def trainer(self) -> Trainer:
        """What trains it from the point on."""
        settings = TrainerSettings.of(self.training)
        # What DeepSpeed will round or share out need not be on the GPU as a whole in float32.
        start = torch.device("cpu") if settings.reshapes else self.device
        model = restricted(model_with(self.student, self.point.weights(), start), self.tokenizer)
        trainer: Trainer
        if self.training.lora is not None:
            trainer = load("parts", "lora")(model, settings, self.training.lora, self.spec.seed, self.device)
        else:
            trainer = Trainer(model, settings, self.device)
        if optimizer := self.point.optimizer():
            trainer.load_optimizer_state(optimizer)
        if self.point.jumped:
            assert self.spec.moments is not None  # a segment that starts at a trigger has them
            trainer.rescale_optimizer_state(self.spec.moments, self.point.jumped)
        return trainer

    @cached_property
    def teacher_head(self) -> Head | None:
        """What an update needs of the teacher."""
        return teacher_head_of(self.training, self.teacher, self.tokenizer, self.device)

    def update(self, rollouts: Rollouts, scores: Scores, step: int) -> tuple[dict[str, Any], Rows]:
        """One optimizer step; returns its metrics and its cost."""
        head, working = self.teacher_head, time.perf_counter()
        metrics = distillation.update_policy(self.trainer, rollouts, scores, self.training, step, self.pad_id, head)
        seconds = time.perf_counter() - working
        return metrics, [cost_row("update policy", step, seconds, trained=rollouts.completion_tokens)]

    def extrapolation(self, metrics: Rows, scorer: Teacher | None = None) -> Extrapolate:
        """What extrapolates along each update from the trainer's present weights on; nothing unless the run does so.

        `metrics` are those of the steps since the point. The teacher is the scorer's, if it has one here, and is loaded
        from its folder otherwise.
        """
        if self.spec.extrapolation is None:
            return lambda rollouts, step: ({}, [])
        previous = metrics[-1] if metrics else self.point.manifest.result
        extrapolate: Extrapolate = load("parts", "extrapolation")(
            self.spec.extrapolation,
            self.training,
            moments=self.spec.moments,
            trainer=self.trainer,
            student=self.student,
            teacher=lambda: _model_of(scorer) or load_frozen(self.teacher, self.device),
            pad_id=self.pad_id,
            seed=self.spec.seed,
            previous=float(previous.get("coefficient", 1.0)),
            device=self.device,
        )
        return extrapolate


def sync_policy(policy_model: PreTrainedModel, trainer: Trainer) -> None:
    """Give the model that generates the trained weights, unless it is the very model in training."""
    if policy_model is not trainer.model:
        trainer.copy_weights_into(policy_model)


def teacher_of(
    training: TrainingSettings, student: Path, teacher: Path, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> Teacher:
    """Who scores as the objective needs it: the teacher's folder, or the server that has it.

    With the untrained student's folder as reference (ExOPD).
    """
    objective, support = training.objective, training.objective.support
    _, pad_id = special_ids(tokenizer)
    tokens = KnownTokens.of(tokenizer)
    top_k = objective.top_k if support == "top_k" else 0
    scorer: Teacher
    if training.scored_by == "endpoint":
        served = endpoint_of(training.teacher)
        scorer = load("teachers", "endpoint")(served, tokenizer, top_k=top_k, vocabulary=tokens.size)
    else:
        scorer = LocalTeacher(
            load_frozen(teacher, device),
            pad_id=pad_id,
            batch_size=training.batch_size,
            top_k=top_k,
            tokens=tokens,
            hidden_states=support == "full",
        )
    if objective.reward_scale == 1:
        return scorer
    base = restricted(load_model(student, device, dtype_of(training.precision)), tokenizer)
    reference = LocalTeacher(base, pad_id=pad_id, batch_size=training.batch_size)
    return WithReference(scorer, reference)


def _model_of(scorer: Teacher | None) -> PreTrainedModel | None:
    """The teacher in this process that a scorer asks, if any."""
    scorer = scorer.teacher if isinstance(scorer, WithReference) else scorer
    return scorer.model if isinstance(scorer, LocalTeacher) else None


def teacher_head_of(
    training: TrainingSettings, teacher: Path, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> Head | None:
    """What an update on the full vocabulary, that is the student's tokens, needs of the teacher."""
    if training.objective.support != "full":
        return None
    return Head.of_folder(teacher, KnownTokens.of(tokenizer), device)
