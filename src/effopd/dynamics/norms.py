"""How far weights moved, and how many did not (paper section 3, items 1 and 2; update sparsity)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import pandas as pd

TOLERANCES = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)


@dataclass(frozen=True)
class Size:
    """The size of one parameter's update."""

    elements: int
    frobenius_norm: float  # || Delta W ||_F
    base_norm: float  # || W_base ||_F
    unmoved: dict[float, float]  # tolerance -> fraction of the elements with |Delta| <= tolerance


def update_size(blocks: Iterable[tuple[torch.Tensor, torch.Tensor]], tolerances: Sequence[float] = TOLERANCES) -> Size:
    """The size of an update given in blocks of (base, Delta = trained - base), float32 tensors of any one shape a pair.

    Squares are summed in float32 along the last dimension and in float64 across the others. Sparsity is counted in
    float32, whatever the checkpoints are stored in.
    """
    elements, moved, base, unmoved = 0, 0.0, 0.0, np.zeros(len(tolerances))
    for weights, delta in blocks:
        elements += delta.numel()
        moved += _squares(delta)
        base += _squares(weights)
        sizes = delta.abs()
        unmoved += [delta.numel() - int(torch.count_nonzero(sizes > tolerance)) for tolerance in tolerances]
    return Size(elements, moved**0.5, base**0.5, dict(zip(tolerances, (unmoved / elements).tolist(), strict=True)))


def total_norms(norms: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Norms of groups of parameters: roots of summed squares, a row a value of the columns `by`.

    `norms` has columns frobenius_norm, base_norm and elements; the result has them and relative_norm, their ratio.
    """
    squared = norms.assign(frobenius_norm=norms["frobenius_norm"] ** 2, base_norm=norms["base_norm"] ** 2)
    columns = ["frobenius_norm", "base_norm", "elements"]
    totals = squared.groupby(list(by), dropna=False)[columns].sum().reset_index()
    totals[columns[:2]] **= 0.5
    return totals.assign(relative_norm=totals["frobenius_norm"] / totals["base_norm"])


def _squares(tensor: torch.Tensor) -> float:
    rows = torch.linalg.vector_norm(tensor, dim=-1) if tensor.dim() else tensor
    return float(rows.double().square().sum())
