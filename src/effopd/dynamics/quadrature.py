"""Sums over all eigenvalues of a Gram matrix without computing them: block Lanczos, calibrated by exact traces.

A block of b random orthonormal vectors spans a Krylov space of G. Its Ritz values theta_j, with the shares that the
vectors have in them, are a Gauss quadrature: (n / b) sum_v v^T f(G) v = sum_j w_j f(theta_j) estimates trace f(G),
without bias but with a spread of about sqrt(2 / (n b)) times f's. Three things remove nearly all of that spread:

- eigenvectors that have settled are taken out and counted exactly;
- the weights are calibrated, as surveys are to known totals: changed as little as possible so that they reproduce the
  exact traces of 1, G, G^2 and, where those are not enough, of ln(G + t), which takes a Cholesky factorisation. The
  part of f that a combination of these functions follows is then exact;
- what is left is measured: by its spread over the random vectors, and by what more Lanczos steps change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from effopd.common.randomness import generator
from effopd.dynamics.gram import Gram

MAX_STEPS = 24
NEARLY_DEPENDENT = 1e-3  # smallest over largest of R's diagonal
SETTLED = 1e-2  # residual of an eigenvector that is taken out, over the mean of the other eigenvalues
SHIFT_QUANTILES = (0.25, 0.06, 0.45)  # where the shifts t lie in the distribution of sum sigma, in order of use


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenpairs, decreasing."""

    values: np.ndarray  # [d]
    coordinates: np.ndarray  # [d, d], a column a pair, in the Krylov basis
    residuals: np.ndarray  # [d], || G u - theta u ||
    shares: np.ndarray  # [b, d], of each random vector in each pair; rows sum to 1


class BlockLanczos:
    """An orthonormal basis of span(V, G V, G^2 V, ...) for a random block V [n, b], grown step by step."""

    def __init__(self, gram: Gram, block: int) -> None:
        self.gram, self.block, self.steps = gram, block, 0
        self.max_steps = min(MAX_STEPS, gram.size // block - 1)
        size = block * (self.max_steps + 1)
        self._vectors = np.empty((gram.size, size), np.float32)
        random = generator("lanczos", gram.size, block)
        self._vectors[:, :block] = _orthonormal(random.standard_normal((gram.size, block), np.float32))[0]
        self._projected = np.zeros((size, size), np.float32)

    @property
    def basis(self) -> np.ndarray:
        """[n, b * steps]: the vectors in which the Ritz pairs' coordinates are."""
        return self._vectors[:, : self.block * self.steps]

    def grow(self, steps: int) -> Ritz:
        """Go on to `steps` steps, or to the last possible one, and return the Ritz pairs there."""
        while self.steps < min(steps, self.max_steps):
            self._step()
        size, block = self.block * self.steps, self.block
        values, coordinates = scipy.linalg.eigh(
            self._projected[:size, :size], lower=False, driver="evd", check_finite=False
        )
        values, coordinates = values[::-1].astype(np.float64), coordinates[:, ::-1]
        link = self._projected[size - block : size, size:][:, :block]  # to the next block of vectors
        residuals = np.linalg.norm(link.T @ coordinates[size - block :], axis=0)
        return Ritz(values, coordinates, residuals, coordinates[:block].astype(np.float64) ** 2)

    def _step(self) -> None:
        start, stop, ahead = (self.block * (self.steps + i) for i in (0, 1, 2))
        basis = self._vectors[:, :stop]
        new = self.gram.multiply(self._vectors[:, start:stop])
        self._projected[:stop, start:stop] = basis.T @ new
        new -= basis @ self._projected[:stop, start:stop]
        new -= basis @ (basis.T @ new)  # twice is enough: orthogonal to working precision
        following, factor = _orthonormal(new)
        if _nearly_dependent(factor):  # some directions are nearly used up
            following -= basis @ (basis.T @ following)
            following, again = _orthonormal(following)
            factor = again @ factor
        self._vectors[:, stop:ahead] = following
        self._projected[start:stop, stop:ahead] = factor.T
        self.steps += 1


def _orthonormal(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Q [n, b] with orthonormal columns, float32, and R [b, b], upper triangular, with Q R = block.

    By Cholesky of the inner products in float64, three times faster than Householder's reflections, which take over
    where columns are nearly dependent.
    """
    double = block.astype(np.float64)
    try:
        factor = np.linalg.cholesky(double.T @ double, upper=True)
    except np.linalg.LinAlgError:
        return np.linalg.qr(block)
    if _nearly_dependent(factor):
        return np.linalg.qr(block)
    return (double @ np.linalg.inv(factor)).astype(np.float32), factor


def _nearly_dependent(factor: np.ndarray) -> bool:
    """Whether a column of Q R is nearly a combination of those before it."""
    lengths = np.abs(factor.diagonal())
    return bool(lengths.min() < NEARLY_DEPENDENT * lengths.max())


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights: sum_j weights_j f(values_j) is trace f(G), exactly for 1, G and G^2."""

    values: np.ndarray  # [d], decreasing, not negative
    weights: np.ndarray  # [d], summing to n; 1 for the settled pairs
    _settled: int
    _sampled: np.ndarray  # [b, d - settled], the random vectors' weights before calibration
    _controls: np.ndarray  # [d - settled, c], the functions with known traces

    def standard_error(self, function: np.ndarray) -> float:
        """Of trace f(G), from the spread over the random vectors; `function` is f at the nodes [d]."""
        pooled = np.sqrt(self._sampled.mean(axis=0))
        target = function[self._settled :]
        fit = np.linalg.lstsq(self._controls * pooled[:, None], target * pooled, rcond=None)[0]
        left = self._sampled @ (target - self._controls @ fit)
        return float(left.std(ddof=1) / len(left) ** 0.5)


class ExactTraces:
    """Traces of ln(G + t I) = ln det(G + t I) for a few shifts t, each found once, where a quadrature calls for it."""

    def __init__(self, gram: Gram) -> None:
        self.gram = gram
        self.log_determinants: dict[float, float] = {}

    def refine(self, quadrature: Quadrature) -> bool:
        """Add the trace for one more t, at a quantile of `quadrature`. False if no more can help."""
        if len(self.log_determinants) == len(SHIFT_QUANTILES):
            return False
        mass = np.cumsum((quadrature.weights * np.sqrt(quadrature.values))[::-1])
        place = int(np.searchsorted(mass, SHIFT_QUANTILES[len(self.log_determinants)] * mass[-1]))
        shift = float(quadrature.values[::-1][min(place, len(mass) - 1)])
        if shift <= 0 or shift in self.log_determinants:
            return False
        try:
            self.log_determinants[shift] = self.gram.log_determinant(shift)
        except ValueError:
            return False
        return True


class Calibration:
    """The Ritz pairs at one number of steps, and exact traces to calibrate their weights by.

    Not `usable` where all but rounding noise is in the leading pairs: there is nothing left to estimate from.
    """

    def __init__(self, lanczos: BlockLanczos, ritz: Ritz, traces: ExactTraces) -> None:
        self._gram, self._ritz, self._traces = lanczos.gram, ritz, traces
        self._values = np.maximum(ritz.values, 0)
        leading = 2 * lanczos.block
        mean_of_rest = (self._gram.trace - self._values[:leading].sum()) / (self._gram.size - leading)
        moving = np.flatnonzero(ritz.residuals[:leading] > SETTLED * mean_of_rest)
        self._settled = int(moving[0]) if len(moving) else leading
        out = self._values[: self._settled]
        self.usable = bool(mean_of_rest > self._gram.noise)
        self._square = self._gram.norm**2 - float(out @ out)
        if self._square < 0.01 * float(out @ out):  # too much would cancel
            vectors = lanczos.basis @ ritz.coordinates[:, : self._settled]
            self._square = self._gram.norm_without(vectors, out.astype(np.float32)) ** 2

    def quadrature(self) -> Quadrature:
        """Weights w (1 + F a) with a such that the functions F have their exact traces."""
        out, nodes = self._values[: self._settled], self._values[self._settled :]
        functions = [np.ones_like(nodes), nodes, nodes**2]
        traces = [self._gram.size - self._settled, self._gram.trace - out.sum(), self._square]
        for shift, log_determinant in self._traces.log_determinants.items():
            functions.append(np.log(nodes + shift))
            traces.append(log_determinant - np.log(out + shift).sum())
        controls = np.stack(functions, axis=1)
        scale = np.abs(controls).max(axis=0)
        controls, known = controls / scale, np.array(traces) / scale
        sampled = self._ritz.shares[:, self._settled :] * self._gram.size
        weights = sampled.mean(axis=0)
        moments = (controls * weights[:, None]).T @ controls
        change = np.linalg.lstsq(moments, known - weights @ controls, rcond=1e-14)[0]
        weights = np.concatenate([np.ones(self._settled), weights * (1 + controls @ change)])
        return Quadrature(self._values, weights, self._settled, sampled, controls)
