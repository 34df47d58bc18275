"""Losses, gradients and updates of an objective."""

from __future__ import annotations

from functools import partial

import torch

from effopd.distillation.objective import ScoredBatch, distillation_loss
from effopd.distillation.step import update_policy
from effopd.losses.chunked import chunked_loss
from effopd.models.models import weights_of
from effopd.training.trainer import Trainer, TrainerSettings
from objectives import head_of, rollouts_of, scores_of, training_of
from tiny_models import make_model

CPU = torch.device("cpu")


def loss_and_gradients(model, teacher, objective, rollouts=None, **others):
    """Of one micro-batch: the loss, the gradients by parameter, the sums that metrics are made from."""
    training = training_of(objective, batch_size=10, **others)
    rollouts = rollouts or rollouts_of(model)
    scores = scores_of(teacher, rollouts, training)
    head = head_of(teacher, training)
    micro = ScoredBatch.from_rollouts(rollouts, scores, 0, CPU, head)
    model.zero_grad()
    loss_of = partial(distillation_loss, training, rollouts.completion_tokens, micro)
    loss, metrics = chunked_loss(model, micro.batch, loss_of)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return loss.item(), gradients, {name: value.item() for name, value in (micro.metrics | metrics).items()}


def step(objective, rollouts, batch_size, **others):
    """One update of a student on the rollouts, in micro-batches: metrics, weights."""
    student, teacher = make_model(0), make_model(1)
    training = training_of(objective, batch_size=batch_size, **others)
    trainer = Trainer(student, TrainerSettings.of(training))
    scores = scores_of(teacher, rollouts, training)
    facts = update_policy(trainer, rollouts, scores, training, 1, 0, head_of(teacher, training))
    return facts, weights_of(student)
