"""How far a checkpoint's update already points where the final one's does (paper section 3, item 7)."""

from __future__ import annotations

import numpy as np

DIRECTIONS = 20


def paired_cosines(vectors: np.ndarray, final: np.ndarray) -> np.ndarray:
    """|<x_i, y_i>| for the i-th columns of orthonormal X and Y [n, k]: the paper's index-paired cosine, k values.

    Signs of singular vectors are arbitrary, hence the absolute value. Where two singular values are nearly equal, their
    vectors may swap or mix at will: a low value then says nothing.
    """
    return np.asarray(np.minimum(np.abs((vectors * final).sum(axis=0)), 1.0))


def principal_cosines(vectors: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Cosines of the principal angles between the spans of X and Y [n, k]: the singular values of X^T Y, decreasing.

    They depend on the subspaces alone, not on the order or mixing of the vectors in them. Two random subspaces of
    dimension k in n dimensions have mean squared cosines of k / n.
    """
    return np.minimum(np.linalg.svd(vectors.T @ final, compute_uv=False), 1.0)


def relative_gaps(singular_values: np.ndarray) -> np.ndarray:
    """min(sigma_{i-1} - sigma_i, sigma_i - sigma_{i+1}) / sigma_i: how well the i-th direction is defined.

    The ends have one neighbor. A perturbation of relative size e turns the direction by about e / gap; NaN if
    sigma_i is zero, infinity for a single value.
    """
    steps = np.concatenate([[np.inf], -np.diff(singular_values), [np.inf]])
    gaps = np.minimum(steps[:-1], steps[1:])
    relative = np.full(len(gaps), np.nan)
    np.divide(gaps, singular_values, out=relative, where=singular_values > 0)
    return relative
