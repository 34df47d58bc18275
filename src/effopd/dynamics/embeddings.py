"""How far token embeddings turned (paper section 3, item 3)."""

from __future__ import annotations

import torch

EMBEDDINGS = ("embedding", "lm_head")


def row_cosines(base: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    """<b_i, t_i> / (|b_i| |t_i|) of the rows of two matrices [n, d]: n values, at most 1.

    Rows that are zero in both are 1; in one, 0.
    """
    cosines = torch.nn.functional.cosine_similarity(base.float(), trained.float(), dim=-1).clamp(max=1.0)
    still = (base == trained).all(dim=-1)
    return torch.where(still, torch.ones_like(cosines), cosines)
