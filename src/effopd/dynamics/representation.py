"""How far hidden representations of the base's own completions turned (paper section 3, item 3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedModel

from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.dynamics.embeddings import row_cosines


@torch.inference_mode()
def representation_cosines(
    base: PreTrainedModel, trained: PreTrainedModel, rollouts: Rollouts, *, pad_id: int, batch_size: int
) -> np.ndarray:
    """Cosines between what two models make of the same completions, summed over the tokens of each: float64 [L + 1, N].

    Layer 0 are the token embeddings, layer i the residual stream after the i-th of L layers, the last one's after the
    final norm. Each is taken at the positions of the completion's own tokens. Divide by the completions' lengths.
    """
    return np.concatenate(list(_cosines(base, trained, rollouts, pad_id, batch_size)), axis=1)


def _cosines(
    base: PreTrainedModel, trained: PreTrainedModel, rollouts: Rollouts, pad_id: int, batch_size: int
) -> Iterator[np.ndarray]:
    for part in rollouts.batches(batch_size):
        batch = PaddedBatch.of(part, pad_id, base.device)
        owner = batch.mask.nonzero()[:, 0].cpu().numpy()  # the completion of each token
        sums = []
        for ours, theirs in zip(_hidden_states(base, batch), _hidden_states(trained, batch), strict=True):
            cosines = row_cosines(ours[:, 1:][batch.mask], theirs[:, 1:][batch.mask]).double().cpu().numpy()
            sums.append(np.bincount(owner, cosines, minlength=len(part)))
        yield np.stack(sums)


def _hidden_states(model: PreTrainedModel, batch: PaddedBatch) -> tuple[torch.Tensor, ...]:
    """L + 1 tensors [B, T, d]."""
    outputs = model(input_ids=batch.tokens, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    states: tuple[torch.Tensor, ...] = outputs.hidden_states
    return states
