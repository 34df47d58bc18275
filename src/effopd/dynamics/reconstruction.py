"""Variants of an update (paper section 3, items 1, 6 and 8), as pure functions of tensors.

Updates are float64 tensors, so that `along(base, update(base, trained), 1)` is bitwise the trained float32 weights and
a variant that should change nothing changes nothing. All functions return new tensors and leave their arguments alone.
"""

from __future__ import annotations

import torch

from effopd.dynamics.spectra import top_count


def update(base: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    """Delta W = W_trained - W_base, float64.

    Exact for float32 (or coarser) weights, unless an element is 2^29 times its base's, or the other way round.
    """
    return trained.double() - base.double()


def along(base: torch.Tensor, delta: torch.Tensor, amount: float = 1.0) -> torch.Tensor:
    """W_base + amount * Delta W, rounded once to float32: of norm amount * || Delta W ||_F."""
    return (base.double() + delta.double() * amount).float()


def keep_top(delta: torch.Tensor, fraction: float, norm: float | None = None) -> torch.Tensor:
    """The part of Delta W [m, n] in its top ceil(fraction * r) singular directions, r = min(m, n).

    With `norm`, rescaled to that Frobenius norm, so that ranks and runs are compared at equal length. Raises ValueError
    unless 0 < fraction <= 1.
    """
    kept = _project(delta, fraction, top=True)
    return kept if norm is None else rescale(kept, norm)


def keep_bottom(delta: torch.Tensor, fraction: float) -> torch.Tensor:
    """Delta W [m, n] without its top ceil((1 - fraction) * r) singular directions, not rescaled: `keep_top`'s rest."""
    return _project(delta, fraction, top=False)


def rescale(delta: torch.Tensor, norm: float) -> torch.Tensor:
    """Delta W * norm / || Delta W ||_F. Raises ValueError for a zero update, which has no direction."""
    size = frobenius_norm(delta)
    if size == 0 and norm != 0:
        raise ValueError("a zero update cannot be rescaled")
    return delta.double() * (norm / size if size else 0.0)


def scale_towards(early: torch.Tensor, final: torch.Tensor, beta: float) -> torch.Tensor:
    """Delta_early * (1 + beta (|| Delta_final ||_F / || Delta_early ||_F - 1)), for one module.

    beta 0 leaves the early update; beta 1 gives it the final one's norm. A zero early update stays zero.
    """
    size = frobenius_norm(early)
    ratio = frobenius_norm(final) / size if size else 1.0
    return early.double() * (1 + beta * (ratio - 1))


def frobenius_norm(tensor: torch.Tensor) -> float:
    """|| . ||_F, accumulated in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _project(delta: torch.Tensor, fraction: float, top: bool) -> torch.Tensor:
    """Delta times the projector on some of the eigenvectors of its Gram matrix, in float64.

    Directions with singular values below 1e-8 sigma_1 are mixed up by rounding; all of them are rounding noise of
    float32 weights.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of directions to keep is {fraction}; it must be above 0 and at most 1")
    matrix = delta.double()
    wide = matrix.shape[0] < matrix.shape[1]
    if wide:
        matrix = matrix.T
    rank = matrix.shape[1]
    count = top_count(rank, fraction) if top else rank - (top_count(rank, 1 - fraction) if fraction < 1 else 0)
    if count == rank:
        return delta.double()  # all directions: exactly the update, without the rounding of a projection
    vectors = torch.linalg.eigh(matrix.T @ matrix).eigenvectors  # increasing eigenvalues
    chosen = vectors[:, rank - count :] if top else vectors[:, :count]
    kept: torch.Tensor = (matrix @ chosen) @ chosen.T
    return kept.T if wide else kept
