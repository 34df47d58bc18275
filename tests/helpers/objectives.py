"""The objectives that the tests go through, and a step's worth of rollouts and scores for each."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from effopd.data.rollouts import Rollouts
from effopd.models.lm_head import Head
from effopd.specs.engines import Sampling
from effopd.specs.segments import TrainingSettings
from effopd.teachers.scoring import LocalTeacher, Scores, WithReference
from small_engine import PROMPTS, SEEDS, engine_of
from tiny_models import make_model
from typed_settings import training_settings

OBJECTIVES: dict[str, dict[str, Any]] = {
    "sampled": {},
    "exopd": {"reward_scale": 1.25},
    "top_k": {"support": "top_k", "top_k": 4},
    "top_k forward": {"support": "top_k", "top_k": 4, "divergence": "forward_kl"},
    "top_k js": {"support": "top_k", "top_k": 4, "divergence": "js"},
    "full": {"support": "full"},
    "full forward": {"support": "full", "divergence": "forward_kl"},
    "full js": {"support": "full", "divergence": "js"},
}


def training_of(objective: str, **others: Any) -> TrainingSettings:
    """Settings of `training` with this objective and the schema's defaults."""
    own = {"batch_size": 4, "max_new_tokens": 12, "lr": 1e-3, "betas": [0.9, 0.99]}
    return training_settings(**{**own, "objective": OBJECTIVES[objective], **others})


def rollouts_of(student: PreTrainedModel, count: int = 10, temperature: float = 1.0) -> Rollouts:
    """Rollouts of very different lengths."""
    parts = [
        engine_of(student).generate([PROMPTS[row]], [SEEDS[row]], Sampling(temperature, 1 + 5 * row % 12))
        for row in range(count)
    ]
    return Rollouts.concatenate(parts)


def scores_of(teacher: PreTrainedModel, rollouts: Rollouts, training: TrainingSettings) -> Scores:
    objective, size = training.objective, training.batch_size
    scorer = LocalTeacher(
        teacher,
        pad_id=0,
        batch_size=size,
        top_k=objective.top_k if objective.support == "top_k" else 0,
        hidden_states=objective.support == "full",
    )
    reference = LocalTeacher(make_model(2), pad_id=0, batch_size=size)
    return (scorer if objective.reward_scale == 1 else WithReference(scorer, reference)).score(rollouts)


def head_of(teacher: PreTrainedModel, training: TrainingSettings) -> Head | None:
    return Head.of(teacher) if training.objective.support == "full" else None
