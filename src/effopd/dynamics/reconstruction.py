"""Variants of an update (paper section 3, items 1, 3, 6 and 8), as pure functions of tensors.

All return new float32 tensors (sums as precise as that) and leave their arguments alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from effopd.dynamics.checkpoints import parameter_place
from effopd.dynamics.spectra import top_count


def keep_top(delta: torch.Tensor, fraction: float, norm: float | None = None) -> torch.Tensor:
    """The part of Delta W [m, n] in its top ceil(fraction * r) singular directions, r = min(m, n).

    With `norm`, rescaled to that Frobenius norm, so that ranks and runs are compared at equal length. Raises ValueError
    unless 0 < fraction <= 1.
    """
    kept = _project(delta, fraction, top=True)
    return kept if norm is None else rescale(kept, norm)


def keep_bottom(delta: torch.Tensor, fraction: float) -> torch.Tensor:
    """The part of Delta W [m, n] in its bottom ceil(fraction * r) singular directions, not rescaled."""
    return _project(delta, fraction, top=False)


def rescale(delta: torch.Tensor, norm: float) -> torch.Tensor:
    """Delta W * norm / || Delta W ||_F. Raises ValueError for a zero update, which has no direction."""
    size = frobenius_norm(delta)
    if size == 0 and norm != 0:
        raise ValueError("a zero update cannot be rescaled")
    return delta.float() * (norm / size if size else 0.0)


def scale_towards(early: torch.Tensor, final: torch.Tensor, beta: float) -> torch.Tensor:
    """Delta_early * (1 + beta (|| Delta_final ||_F / || Delta_early ||_F - 1)), for one module.

    beta 0 leaves the early update; beta 1 gives it the final one's norm. A zero early update stays zero.
    """
    size = frobenius_norm(early)
    ratio = frobenius_norm(final) / size if size else 1.0
    return early.float() * (1 + beta * (ratio - 1))


def along(base: torch.Tensor, delta: torch.Tensor, amount: float) -> torch.Tensor:
    """W_base + amount * Delta W: the equal-norm curve's point of norm amount * || Delta W ||_F."""
    return base.float() + delta.float() * amount


def with_base_embeddings(
    trained: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The trained weights with the base's token embeddings put back (which is also the head, where they are tied).

    Raises ValueError where the names or the embeddings' shapes differ, or there is no embedding.
    """
    if differ := sorted(trained.keys() ^ base.keys()):
        raise ValueError(f"the checkpoints differ in their parameters: {', '.join(differ[:5])}")
    embeddings = [name for name in trained if parameter_place(name)[1] == "embedding"]
    if not embeddings:
        raise ValueError("the weights have no token embedding")
    for name in embeddings:
        if trained[name].shape != base[name].shape:
            raise ValueError(
                f"{name} is {tuple(trained[name].shape)} trained and {tuple(base[name].shape)} in the base"
            )
    return {name: base[name] if name in embeddings else tensor for name, tensor in trained.items()}


def frobenius_norm(tensor: torch.Tensor) -> float:
    """|| . ||_F, accumulated in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))


def _project(delta: torch.Tensor, fraction: float, top: bool) -> torch.Tensor:
    """Delta times the projector on some of the eigenvectors of its Gram matrix, in float64.

    Directions with singular values below 1e-8 sigma_1 are mixed up by rounding; all of them are rounding noise of a
    float32 update.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of directions to keep is {fraction}; it must be above 0 and at most 1")
    matrix = delta.double()
    wide = matrix.shape[0] < matrix.shape[1]
    if wide:
        matrix = matrix.T
    count = top_count(matrix.shape[1], fraction)
    vectors = torch.linalg.eigh(matrix.T @ matrix).eigenvectors  # increasing eigenvalues
    chosen = vectors[:, -count:] if top else vectors[:, :count]
    kept = (matrix @ chosen) @ chosen.T
    return (kept.T if wide else kept).float()
