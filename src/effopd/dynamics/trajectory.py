"""The path of a matrix's first singular direction over training (paper section 3, item 9)."""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE

from effopd.common.randomness import seed_of

TSNE_CHECKPOINTS = 6  # t-SNE compares neighbourhoods; of fewer points there are none


def align_signs(vectors: np.ndarray) -> np.ndarray:
    """The first singular vectors of successive checkpoints [t, n], each with the sign that points along the next one.

    The sign of a singular vector is arbitrary; the last one's is kept.
    """
    signs = np.ones(len(vectors))
    for i in range(len(vectors) - 2, -1, -1):
        signs[i] = signs[i + 1] * (1.0 if vectors[i] @ vectors[i + 1] >= 0 else -1.0)
    return vectors * signs[:, None]


def principal_path(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """PCA coordinates [t, 2] of sign-aligned vectors [t, n], and EVR_{0:2} = (l_1 + l_2) / sum_i l_i.

    l_i are the squared singular values of the trajectory matrix after its mean over checkpoints is taken off. t points
    span t - 1 dimensions: the EVR of up to 3 checkpoints is 1 whatever they are, so compare equal numbers of them.
    NaN if all vectors are the same.
    """
    centered = vectors - vectors.mean(axis=0)
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    coordinates = np.zeros((len(vectors), 2))
    kept = min(2, len(values))
    coordinates[:, :kept] = left[:, :kept] * values[:kept]
    energies = values**2
    total = energies.sum()
    return coordinates, float(energies[:2].sum() / total) if total > 1e-20 * len(vectors) else float("nan")


def neighbour_map(vectors: np.ndarray) -> np.ndarray:
    """t-SNE coordinates [t, 2] of sign-aligned vectors [t, n]; NaN for fewer than 6.

    Exact gradients from a PCA start and a fixed seed, so that equal vectors give an equal map. Perplexity t / 3, within
    2 and 30. Only neighbourhoods mean anything in it: neither distances nor the shape of the path do.
    """
    if len(vectors) < TSNE_CHECKPOINTS:
        return np.full((len(vectors), 2), np.nan)
    perplexity = min(max(len(vectors) // 3, 2), 30)
    seed = seed_of("t-SNE") % 2**32
    tsne = TSNE(2, perplexity=perplexity, init="pca", method="exact", random_state=seed)
    return np.asarray(tsne.fit_transform(vectors.astype(np.float64)), np.float64)
