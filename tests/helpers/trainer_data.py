"""Settings, data and a loss for trainers."""

from __future__ import annotations

import torch

from effopd.losses.divergences import negative_log_likelihood, token_logprobs
from effopd.training.trainer import TrainerSettings

SETTINGS = TrainerSettings(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, gradient_clipping=1.0)


def data(step: int, size: int = 8) -> torch.Tensor:
    return torch.randint(2, 16, (size, 12), generator=torch.Generator().manual_seed(step))


def loss_of(model, tokens, total=8 * 11):
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.flatten(0, 1)
    return negative_log_likelihood(token_logprobs(logits, tokens[:, 1:].flatten()), total)


def loss_and_metrics(model, tokens):
    """`loss_of` as a trainer asks for it: with a metric, how many rows the loss is of."""
    return loss_of(model, tokens), {"rows": torch.tensor(float(len(tokens)), dtype=torch.float64)}
