"""Loss and backward over completion tokens, a chunk of positions at a time where the vocabulary is large.

Where the logits of a batch would have more than LOGITS_AT_ONCE entries, head and loss are computed chunk by chunk, and
the gradient of each chunk's logits is turned at once into those of the hidden states and of the head, so that neither
the logits nor their gradient ever exist as a whole. Nothing is computed twice: the loss is a scalar, so that the factor
by which backward scales its gradient can wait.

Shapes: M completion tokens of a batch; V vocabulary entries; H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from effopd.data.rollouts import PaddedBatch
from effopd.losses.metrics import Metrics, add_up
from effopd.models.lm_head import Head, capped, fits_at_once, position_chunks, tokens_of, vocabulary_of

LOGITS_IN_CACHE = 2**21  # 8 MiB in float32

# Logits [m, V] of the positions in the slice -> a scalar, to be differentiated.
LossOfLogits = Callable[[torch.Tensor, slice], torch.Tensor]
LossAndMetricsOfLogits = Callable[[torch.Tensor, slice], tuple[torch.Tensor, Metrics]]


def chunked_loss(model: Any, batch: PaddedBatch, loss_of: LossAndMetricsOfLogits) -> tuple[torch.Tensor, Metrics]:
    """Loss, for one backward, and metrics of a batch's completion tokens: the sums of what `loss_of` returns.

    `model` is the model or what is around it (the DeepSpeed engine, adapters). `loss_of` is called for one chunk of the
    M positions after the other, and must be a sum over positions. Raises ArtifactError if the batch needs chunks and
    the model's logits are not its head's.
    """
    plain = model
    while hasattr(plain, "module"):
        plain = plain.module
    inputs = batch.tokens[:, :-1]
    if fits_at_once(batch, vocabulary_of(plain)):
        logits = tokens_of(plain)(model(input_ids=inputs, use_cache=False).logits[batch.mask])
        return loss_of(logits, slice(0, len(logits)))
    metrics: list[Metrics] = []

    def loss_alone(logits: torch.Tensor, rows: slice) -> torch.Tensor:  # only tensors pass through a model and autograd
        loss, sums = loss_of(logits, rows)
        metrics.append(sums)
        return loss

    with _loss_in_place_of_logits(plain, batch.mask, loss_alone):
        loss: torch.Tensor = model(input_ids=inputs, use_cache=False).logits
    return loss.squeeze(), add_up(metrics)


@contextmanager
def _loss_in_place_of_logits(model: PreTrainedModel, mask: torch.Tensor, loss_of: LossOfLogits) -> Iterator[None]:
    """Meanwhile the model's head returns the loss, [1, 1, 1], where it would return logits.

    Inside the head's own forward, because only there does ZeRO 3 have its partitioned weights together.
    """
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    cap, tokens, size = Head.of(model).cap, tokens_of(model), vocabulary_of(model)

    def loss_of_product(product: torch.Tensor, rows: slice) -> torch.Tensor:
        return loss_of(tokens(capped(product, cap)), rows)

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        product: Any = HeadAndLoss
        loss: torch.Tensor = product.apply(hidden[mask], head.weight, head.bias, size, loss_of_product)
        return loss.reshape(1, 1, 1)

    head.forward = forward
    if cap is not None:
        config.final_logit_softcapping = None  # else the model would cap the loss
    try:
        yield
    finally:
        del head.forward
        if cap is not None:
            config.final_logit_softcapping = cap


def _replace_by_gradient(logits: torch.Tensor, loss_of: LossOfLogits, start: int) -> torch.Tensor:
    """Put the loss's gradient into the place of a chunk's logits [m, V], and return the loss; `start` is its position.

    On a CPU by small blocks, whose many intermediate results stay in its caches.
    """
    total = torch.zeros((), device=logits.device)
    at_once = LOGITS_IN_CACHE if logits.device.type == "cpu" else logits.numel()
    for rows in position_chunks(len(logits), logits.shape[1], at_once):
        block = logits[rows]
        with torch.enable_grad():
            leaf = block.detach().requires_grad_()
            loss = loss_of(leaf, slice(start + rows.start, start + rows.stop))
            (gradient,) = torch.autograd.grad(loss, leaf)
        block.copy_(gradient)
        total += loss.detach()
    return total


class HeadAndLoss(torch.autograd.Function):
    """Forward computes the gradients too, chunk by chunk; backward hands them out."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [M, H]
        weight: torch.Tensor,  # [at least V, H]
        bias: torch.Tensor | None,  # [at least V]
        size: int,  # V
        loss_of: LossOfLogits,  # of the product with the head
    ) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        total = torch.zeros((), device=hidden.device)
        of_hidden = torch.empty_like(hidden)
        _, trained, trained_bias, *_ = ctx.needs_input_grad
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if trained else None  # chunks add up in float32
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and trained_bias else None
        with torch.autocast(device, enabled=False):
            matrix, offset = weight[:size].to(dtype), None if bias is None else bias[:size].to(dtype)
            for rows in position_chunks(len(hidden), size):
                states = hidden[rows].to(dtype)
                logits = torch.nn.functional.linear(states, matrix, offset)
                total += _replace_by_gradient(logits, loss_of, rows.start)
                of_hidden[rows] = (logits @ matrix).to(hidden.dtype)
                if of_weight is not None and dtype == torch.float32:
                    of_weight[:size].addmm_(logits.T, states)
                elif of_weight is not None:
                    of_weight[:size] += logits.T @ states
                if of_bias is not None:
                    of_bias[:size] += logits.sum(0)
        ctx.gradients = of_hidden, *(None if sums is None else sums.to(weight.dtype) for sums in (of_weight, of_bias))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if gradient is None else gradient.mul_(scale) for gradient in gradients), None, None
