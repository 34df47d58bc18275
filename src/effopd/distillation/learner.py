"""The student in training, from a point of a run, and who scores it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.artifacts.manifests import Manifest
from effopd.common.registry import load
from effopd.config.runtime_options import endpoint_of
from effopd.data.rollouts import Rollouts
from effopd.distillation.step_artifacts import Rows
from effopd.engines.base import RolloutEngine, build_engine, longest_context
from effopd.models.lm_head import Head, KnownTokens, restricted
from effopd.models.models import dtype_of, load_frozen, load_model, load_tokenizer, model_with, special_ids
from effopd.teachers.scoring import LocalTeacher, Teacher, WithReference
from effopd.training.checkpoints import Point
from effopd.training.trainer import Trainer, TrainerSettings

# Goes on from where an update has led, given its rollouts and step: metrics and a cost row (every_step.py).
Jump = Callable[[Rollouts, int], tuple[dict[str, Any], dict[str, Any]]]


class Learner:
    """The student with a point's weights, and what goes with it to generate and train."""

    def __init__(self, spec: dict[str, Any], student: Manifest, point: Point, device: torch.device) -> None:
        self.training, self.extrapolation = spec["training"], spec["extrapolation"]
        self.point, self.device, self.folder = point, device, student.path.parent
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(self.folder)
        _, self.pad_id = special_ids(self.tokenizer)

    def acting(self) -> PreTrainedModel:
        """A model to generate with, in the precision of training."""
        return model_with(self.folder, self.point.weights(), self.device, dtype_of(self.training["precision"]))

    def engine(self, prompts: Sequence[Sequence[int]], acting: PreTrainedModel) -> RolloutEngine:
        """An engine for completions of these prompts, which the caller closes."""
        context = longest_context(prompts, self.training["max_new_tokens"])
        batch_size = self.training["batch_size"]
        return build_engine(self.training, acting, self.tokenizer, batch_size=batch_size, context=context)

    def trainer(self, seed: int) -> Trainer:
        """What trains it from the point on; `seed` draws the factors of LoRA."""
        settings = TrainerSettings.of(self.training)
        # What DeepSpeed will round or share out need not be on the GPU as a whole in float32.
        start = torch.device("cpu") if settings.reshapes else self.device
        model = restricted(model_with(self.folder, self.point.weights(), start), self.tokenizer)
        trainer: Trainer
        if "lora" in self.training:
            trainer = load("parts", "lora")(model, settings, self.training["lora"], seed, self.device)
        else:
            trainer = Trainer(model, settings, self.device)
        if optimizer := self.point.optimizer():
            trainer.load_optimizer_state(optimizer)
        if self.point.jumped:
            trainer.forget_after_jump(self.extrapolation["moments"], self.point.jumped)
        return trainer

    def jump(
        self, trainer: Trainer, teacher: Path, seed: int, rows: Rows, scorer: Teacher | None = None
    ) -> Jump | None:
        """What extrapolates along each update from the trainer's present weights on, where the run does so.

        `rows` are the metrics of the steps since the point. The teacher is the scorer's, where it has one here, and
        else loaded from its folder.
        """
        if "gate" not in self.extrapolation:
            return None
        previous = rows[-1] if rows else self.point.manifest.result
        jump: Jump = load("parts", "extrapolation")(
            self.extrapolation,
            self.training,
            trainer=trainer,
            student=self.folder,
            teacher=lambda: _model_of(scorer) or load_frozen(teacher, self.device),
            pad_id=self.pad_id,
            seed=seed,
            previous=float(previous.get("coefficient", 1.0)),
            device=self.device,
        )
        return jump


def renew(acting: PreTrainedModel, trainer: Trainer) -> None:
    """Give the model that acts the trained weights, where it is not the very model in training."""
    if acting is not trainer.model:
        trainer.copy_weights_into(acting)


def teacher_of(
    training: dict[str, Any], student: Path, teacher: Path, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> Teacher:
    """Who scores as the objective needs it: the teacher's folder, or the server that has it; with the untrained
    student's folder as reference (ExOPD).
    """
    objective, support = training["objective"], training["objective"]["support"]
    _, pad_id = special_ids(tokenizer)
    tokens = KnownTokens.of(tokenizer)
    top_k = objective["top_k"] if support == "top_k" else 0
    scorer: Teacher
    if training["scored_by"] == "endpoint":
        served = endpoint_of(training["teacher"])
        scorer = load("teachers", "endpoint")(served, tokenizer, top_k=top_k, vocabulary=tokens.size)
    else:
        scorer = LocalTeacher(
            load_frozen(teacher, device),
            pad_id=pad_id,
            batch_size=training["batch_size"],
            top_k=top_k,
            tokens=tokens,
            hidden_states=support == "full",
        )
    if objective["lambda"] == 1:
        return scorer
    base = restricted(load_model(student, device, dtype_of(training["precision"])), tokenizer)
    reference = LocalTeacher(base, pad_id=pad_id, batch_size=training["batch_size"])
    return WithReference(scorer, reference)


def _model_of(scorer: Teacher | None) -> PreTrainedModel | None:
    """The teacher in this process that a scorer asks, if any."""
    scorer = scorer.teacher if isinstance(scorer, WithReference) else scorer
    return scorer.model if isinstance(scorer, LocalTeacher) else None


def teacher_head_of(
    training: dict[str, Any], teacher: Path, tokenizer: PreTrainedTokenizerFast, device: torch.device
) -> Head | None:
    """What an update on the full vocabulary, that is the student's tokens, needs of the teacher."""
    if training["objective"]["support"] != "full":
        return None
    return Head.of_folder(teacher, KnownTokens.of(tokenizer), device)
