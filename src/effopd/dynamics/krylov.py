"""Eigenpairs of a huge symmetric matrix that is only ever multiplied: Lanczos, started at the vector of interest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

Product = Callable[[torch.Tensor], torch.Tensor]  # [P] -> A v [P]
EXHAUSTED = 1e-6  # a new direction, over the largest so far, from which on there is only rounding


@dataclass(frozen=True)
class Krylov:
    """An orthonormal basis Q of span(b, A b, ..., A^{m-1} b), and A in it: T = Q^T A Q, tridiagonal.

    The eigenpairs of T give those of A that b has a part in (Ritz pairs), the leading ones first and best. A polynomial
    of A of a degree below m, applied to b, is exact in this basis.
    """

    basis: torch.Tensor  # [m, P], the first row b / || b ||
    diagonal: np.ndarray  # [m]
    off_diagonal: np.ndarray  # [m], the last entry leads out of the space; 0 if b has been used up
    length: float  # || b ||

    def ritz(self) -> RitzPairs:
        """The approximate eigenpairs, decreasing."""
        values, coordinates = scipy.linalg.eigh_tridiagonal(self.diagonal, self.off_diagonal[:-1])
        values, coordinates = values[::-1], coordinates[:, ::-1]
        residuals = self.off_diagonal[-1] * np.abs(coordinates[-1])
        return RitzPairs(values, coordinates, residuals, self.length * coordinates[0])

    def vector(self, coordinates: np.ndarray) -> torch.Tensor:
        """The vector [P] with these coordinates [m] in the basis."""
        return torch.from_numpy(coordinates).to(self.basis) @ self.basis

    def shortened(self, iterations: int) -> Krylov:
        """What the same start gives with fewer iterations: to see what more of them change."""
        kept = slice(min(iterations, len(self.diagonal)))
        return Krylov(self.basis[kept], self.diagonal[kept], self.off_diagonal[kept], self.length)


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs (l_i, u_i) of A, decreasing; u_i is `coordinates[:, i]` in the Krylov basis."""

    values: np.ndarray  # [m]
    coordinates: np.ndarray  # [m, m]
    residuals: np.ndarray  # [m], || A u_i - l_i u_i ||: an eigenvalue lies within this of l_i
    parts: np.ndarray  # [m], beta_i = u_i . b

    @property
    def relative_residuals(self) -> np.ndarray:
        """Residuals over the eigenvalue; infinite if that is not positive."""
        above = self.values > 0
        relative = np.full(len(self.values), np.inf)
        np.divide(self.residuals, self.values, out=relative, where=above)
        return relative

    @property
    def cumulative_shares(self) -> np.ndarray:
        """The share of || b ||^2 in the span of the first k eigenvectors, for k = 1..m; the last is 1."""
        energies = np.square(self.parts)
        return np.asarray(np.cumsum(energies) / energies.sum())


def lanczos(multiply: Product, start: torch.Tensor, iterations: int) -> Krylov:
    """`iterations` steps of Lanczos from b = `start` [P], with full reorthogonalisation, done twice.

    Costs `iterations` products and as many vectors of memory. Stops early where b has no part in more directions.
    Raises ValueError if b is zero or not finite.
    """
    length = float(torch.linalg.vector_norm(start, dtype=torch.float64))
    if not 0 < length < np.inf:
        raise ValueError(f"Lanczos cannot start from a vector of length {length}")
    iterations = min(iterations, len(start))
    basis = torch.empty(iterations, len(start), dtype=start.dtype, device=start.device)
    diagonal, off_diagonal = np.zeros(iterations), np.zeros(iterations)
    basis[0] = start / length
    for step in range(iterations):
        new = multiply(basis[step])
        so_far = basis[: step + 1]
        coordinates = so_far @ new
        diagonal[step] = float(coordinates[step])
        new = new - coordinates @ so_far
        new = new - (so_far @ new) @ so_far
        size = float(torch.linalg.vector_norm(new, dtype=torch.float64))
        if size <= EXHAUSTED * max(diagonal.max(), off_diagonal.max()):
            return Krylov(basis[: step + 1], diagonal[: step + 1], off_diagonal[: step + 1], length)
        off_diagonal[step] = size
        if step + 1 < iterations:
            basis[step + 1] = new / size
    return Krylov(basis, diagonal, off_diagonal, length)
