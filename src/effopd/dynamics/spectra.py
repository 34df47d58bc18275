"""Spectral metrics of weight updates (paper section 3, item 5): fast, and with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from effopd.dynamics.gram import Gram, gram_of
from effopd.dynamics.quadrature import BlockLanczos, Calibration, ExactTraces, Quadrature

TOP_FRACTION = 0.01
TOLERANCE = 1e-3
EXACT_BELOW = 512  # singular values; so few are computed as fast as estimated
LANCZOS_STEPS = (7, 10, 13)  # an estimate is compared with the one before
HOPELESS = 5.0  # tolerances of change from which an estimate is given up
# and before it costs a factorization, which would not help: relative error at the fewest steps, change of an entropy
HOPELESS_SPREAD, HOPELESS_CHANGE = 1e-2, 5e-3
DIRECTION_STEPS = (13, 16, 20, 24)
DIRECTION_RESIDUAL = 1e-4  # || G v - lambda v || / lambda of a singular direction that is good enough
SIGMAS = 3.0  # standard errors in a reported error
NOISE_SIGMAS = 20.0  # standard errors below which a squared singular value is taken for zero
WITH_ERRORS = ("spectral_norm", "effective_rank", "effective_rank_squared", "top1pct_norm_ratio")
SAFE_PEAKS = (1e-7, 1e4)  # largest entries between which float32 holds the sums of their fourth powers


def spectral_norm(singular_values: np.ndarray) -> float:
    """sigma_1, the largest singular value; 0 of a zero matrix."""
    return float(singular_values.max(initial=0.0))


def spectral_to_frobenius(singular_values: np.ndarray) -> float:
    """rho = sigma_1 / || . ||_F = sigma_1 / sqrt(sum_i sigma_i^2), from 1/sqrt(r) to 1; NaN of a zero matrix."""
    total = math.sqrt(np.square(singular_values).sum())
    return spectral_norm(singular_values) / total if total else math.nan


def effective_rank(singular_values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """exp(-sum_i p_i ln p_i) with p_i = sigma_i / sum_j sigma_j, as the paper prints it; NaN of a zero matrix.

    From 1 (rank one) to r (all equal). `weights` are how often each value occurs (default once).
    """
    return math.exp(_entropy(singular_values, weights))


def effective_rank_squared(singular_values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """exp(-sum_i q_i ln q_i) with q_i = sigma_i^2 / sum_j sigma_j^2: over how many directions the energy is spread.

    Many small singular values, such as rounding noise leaves, move it far less than `effective_rank`.
    """
    return math.exp(_entropy(np.square(singular_values), weights))


def top_norm_ratio(singular_values: np.ndarray, fraction: float = TOP_FRACTION) -> float:
    """R_top = || top-k part ||_F / || . ||_F = sqrt(sum_{i<=k} sigma_i^2 / sum_i sigma_i^2), k = ceil(fraction * r).

    r is the number of singular values, zeros included: min(m, n) of an m x n matrix. NaN of a zero matrix.
    """
    energies = np.sort(np.square(singular_values))[::-1]
    total = energies.sum()
    return math.sqrt(energies[: top_count(len(energies), fraction)].sum() / total) if total else math.nan


def top_count(rank: int, fraction: float = TOP_FRACTION) -> int:
    """k = ceil(fraction * r), at least 1."""
    return max(1, math.ceil(round(fraction * rank, 9)))  # 0.07 * 100 is 7.000000000000001


def _entropy(masses: np.ndarray, weights: np.ndarray | None) -> float:
    """-sum_i w_i p_i ln p_i with p_i = m_i / sum_j w_j m_j; NaN if all masses are zero."""
    weights = np.ones_like(masses) if weights is None else weights
    kept = masses > 0
    if not kept.any():
        return math.nan
    share = masses[kept] / (weights @ masses)
    return -float(weights[kept] @ (share * np.log(share)))


@dataclass(frozen=True)
class Spectrum:
    """The metrics of one matrix. Errors are relative: estimates of 3 standard errors, rounding included."""

    spectral_norm: float
    spectral_to_frobenius: float
    effective_rank: float
    top1pct_norm_ratio: float
    frobenius_norm: float
    effective_rank_squared: float
    method: str  # lanczos | gram32 | gram64 | svd | zero
    spectral_norm_error: float = 0.0
    effective_rank_error: float = 0.0
    effective_rank_squared_error: float = 0.0
    top1pct_norm_ratio_error: float = 0.0

    @property
    def error(self) -> float:
        """The largest of the errors; NaN if one is."""
        return float(np.max([getattr(self, f"{name}_error") for name in WITH_ERRORS]))


@dataclass(frozen=True)
class Directions:
    """The leading singular triplets of a matrix [m, n]."""

    values: np.ndarray  # [k], decreasing
    left: np.ndarray  # [m, k]
    right: np.ndarray  # [n, k]


def spectrum(matrix: torch.Tensor, tolerance: float = TOLERANCE) -> Spectrum:
    """The metrics of a float32 matrix [m, n], each to a relative error of `tolerance`.

    Takes the cheapest method whose own error estimate allows it: "lanczos" (estimated traces), "gram32", "gram64"
    (eigenvalues of the Gram matrix in that precision), "svd" (LAPACK in float64). Tolerance 0 means "svd".
    Raises ValueError if an entry is not finite.
    """
    return decompose(matrix, 0, tolerance)[0]


def decompose(matrix: torch.Tensor, directions: int, tolerance: float = TOLERANCE) -> tuple[Spectrum, Directions]:
    """`spectrum`, and the leading `directions` singular triplets (min(m, n) if there are fewer).

    Triplets whose singular value is zero, to working precision, are zero.
    """
    low, high = (float(bound) for bound in torch.aminmax(matrix))
    peak = max(-low, high)
    if not math.isfinite(peak):
        raise ValueError("has entries that are not finite")
    directions = min(directions, *matrix.shape)
    if peak == 0:
        rows, columns = matrix.shape
        zeros = Directions(np.zeros(directions), np.zeros((rows, directions)), np.zeros((columns, directions)))
        return Spectrum(0.0, math.nan, math.nan, math.nan, 0.0, math.nan, "zero"), zeros
    if SAFE_PEAKS[0] < peak < SAFE_PEAKS[1]:
        return _decompose(matrix, directions, tolerance)
    found, triplets = _decompose(matrix / peak, directions, tolerance)
    return (
        replace(found, spectral_norm=found.spectral_norm * peak, frobenius_norm=found.frobenius_norm * peak),
        replace(triplets, values=triplets.values * peak),
    )


def _decompose(matrix: torch.Tensor, directions: int, tolerance: float) -> tuple[Spectrum, Directions]:
    if tolerance == 0:
        return _by_svd(matrix, directions)
    gram, lanczos, found = gram_of(matrix, torch.float32), None, None
    if gram.size >= EXACT_BELOW:
        wanted = max(top_count(gram.size), directions) + 4
        lanczos = BlockLanczos(gram, 8 * max(2, math.ceil(wanted / 8)))
    if lanczos is not None and lanczos.max_steps >= LANCZOS_STEPS[-1]:
        found = _estimate(lanczos, tolerance)
    if found is None:
        found = _from_eigenvalues(gram, "gram32")
    if not found.error <= tolerance:
        gram, lanczos = gram_of(matrix, torch.float64), None
        found = _from_eigenvalues(gram, "gram64")
    if not found.error <= tolerance:
        return _by_svd(matrix, directions)
    return found, _triplets(matrix, *_leading(gram, lanczos, directions), floor=math.sqrt(NOISE_SIGMAS * gram.noise))


def _by_svd(matrix: torch.Tensor, directions: int) -> tuple[Spectrum, Directions]:
    if directions:
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        triplets = Directions(*(part.cpu().numpy() for part in (values, left, right.T)))
    else:
        values = torch.linalg.svdvals(matrix.double())
        triplets = Directions(values.cpu().numpy(), np.empty((len(matrix), 0)), np.empty((matrix.shape[1], 0)))
    found = _spectrum(triplets.values, "svd")
    return found, Directions(*(part[..., :directions] for part in (triplets.values, triplets.left, triplets.right)))


def _from_eigenvalues(gram: Gram, method: str) -> Spectrum:
    values = np.sqrt(np.maximum(gram.eigenvalues()[::-1], 0))
    return _with_rounding(_spectrum(values, method), values, np.ones_like(values), gram)


def _spectrum(values: np.ndarray, method: str) -> Spectrum:
    return Spectrum(
        spectral_norm(values),
        spectral_to_frobenius(values),
        effective_rank(values),
        top_norm_ratio(values),
        math.sqrt(np.square(values).sum()),
        effective_rank_squared(values),
        method,
    )


def _with_rounding(found: Spectrum, values: np.ndarray, weights: np.ndarray, gram: Gram) -> Spectrum:
    """Add what errors of standard deviation `gram.noise` in each squared singular value do to the metrics.

    A metric's error is that of its linearisation: independent errors add in squares. Singular values below
    sqrt(noise) may be as large as that, all of them.
    """
    noise, weights = gram.noise, np.maximum(weights, 0)
    energies, energy, floor = np.square(values), gram.trace, math.sqrt(noise)
    total = float(weights @ values)
    shown = values >= floor
    # d entropy / d sigma_i = -(ln p_i + entropy) / total, and d sigma_i = d lambda_i / (2 sigma_i)
    slope = (np.log(np.maximum(values, floor) / total) + math.log(found.effective_rank)) / total
    first = math.sqrt(weights[shown] @ np.square(slope[shown] * noise / (2 * values[shown])))
    hidden = float(weights[~shown] @ np.abs(slope[~shown])) * floor
    slope = (np.log(np.maximum(energies, noise) / energy) + math.log(found.effective_rank_squared)) / energy
    squared = math.sqrt(weights @ np.square(slope * noise))
    top = noise * math.sqrt(top_count(gram.size)) / (2 * found.top1pct_norm_ratio**2 * energy)
    errors = {
        "spectral_norm": SIGMAS * noise / (2 * found.spectral_norm**2),
        "effective_rank": SIGMAS * first + hidden,
        "effective_rank_squared": SIGMAS * squared,
        "top1pct_norm_ratio": SIGMAS * top,
    }
    return _add_errors(found, errors)


def _estimate(lanczos: BlockLanczos, tolerance: float) -> Spectrum | None:
    """The metrics from a calibrated quadrature; None if their errors do not come below the tolerance."""
    gram, traces = lanczos.gram, ExactTraces(lanczos.gram)
    previous: tuple[Calibration, Spectrum] | None = None
    for steps in LANCZOS_STEPS:
        calibration = Calibration(lanczos, lanczos.grow(steps), traces)
        if not calibration.usable:
            return None
        quadrature = calibration.quadrature()
        now = _from_quadrature(quadrature, gram)
        if previous is None and now.error > max(HOPELESS_SPREAD, tolerance):
            return None
        while previous is not None:
            before, earlier = previous
            changes = _changes(now, earlier)
            found = _add_errors(now, changes)
            if found.error <= tolerance:
                return found
            hopeless = max(HOPELESS * tolerance, 0 if traces.log_determinants else HOPELESS_CHANGE)
            if max(change for name, change in changes.items() if "rank" in name) > hopeless:
                return None
            if max(found.spectral_norm_error, found.top1pct_norm_ratio_error) > tolerance:
                break  # more steps are needed anyway
            if not traces.refine(quadrature):
                break
            previous = before, _from_quadrature(before.quadrature(), gram)
            quadrature = calibration.quadrature()
            now = _from_quadrature(quadrature, gram)
        previous = calibration, now
    return None


def _from_quadrature(quadrature: Quadrature, gram: Gram) -> Spectrum:
    """The metrics, with their errors but for those of too few Lanczos steps."""
    values, weights, energy = np.sqrt(quadrature.values), quadrature.weights, gram.trace
    largest = float(values[0])
    top = quadrature.values[: top_count(gram.size)].sum()
    found = Spectrum(
        largest,
        largest / math.sqrt(energy),
        effective_rank(values, weights),
        math.sqrt(top / energy),
        math.sqrt(energy),
        effective_rank_squared(values, weights),
        "lanczos",
    )
    first = _influence(values / (weights @ values), found.effective_rank)
    second = _influence(quadrature.values / energy, found.effective_rank_squared)
    found = replace(
        found,
        effective_rank_error=SIGMAS * quadrature.standard_error(first),
        effective_rank_squared_error=SIGMAS * quadrature.standard_error(second),
    )
    return _with_rounding(found, values, weights, gram)


def _influence(share: np.ndarray, rank: float) -> np.ndarray:
    """d entropy / d w_i for shares p_i of a sum, p_i (1 - ln p_i - ln rank), where `rank` is exp(entropy)."""
    return np.asarray(share * (1 - np.log(np.maximum(share, np.finfo(float).tiny)) - math.log(rank)))


def _changes(now: Spectrum, before: Spectrum) -> dict[str, float]:
    """Relative errors of too few Lanczos steps, from what three more steps changed.

    The entropies' may be that of a square root at 0, which falls as steps^-2. The top of the spectrum converges
    geometrically, by more than a factor of three.
    """
    return {
        name: (1.5 if "rank" in name else 0.5) * abs(getattr(now, name) / getattr(before, name) - 1)
        for name in WITH_ERRORS
    }


def _add_errors(found: Spectrum, errors: dict[str, float]) -> Spectrum:
    return replace(found, **{f"{name}_error": getattr(found, f"{name}_error") + errors[name] for name in errors})


def _leading(gram: Gram, lanczos: BlockLanczos | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The leading eigenvalues of G and their eigenvectors [n, count]."""
    if not count:
        return np.empty(0), np.empty((gram.size, 0))
    if lanczos is not None:
        for steps in DIRECTION_STEPS:
            ritz = lanczos.grow(steps)
            if (ritz.residuals[:count] <= DIRECTION_RESIDUAL * ritz.values[:count]).all():
                return ritz.values[:count], lanczos.basis @ ritz.coordinates[:, :count]
    return gram.leading(count)


def _triplets(matrix: torch.Tensor, eigenvalues: np.ndarray, vectors: np.ndarray, floor: float) -> Directions:
    """Singular triplets from eigenvectors of the smaller Gram matrix: the other side's are A v / sigma.

    Those with singular values below `floor` are rounding noise and set to zero.
    """
    values = np.sqrt(np.maximum(eigenvalues, 0))
    values = np.where(values > floor, values, 0.0)
    vectors = np.where(values > 0, vectors, 0).astype(np.float32)
    wide = matrix.shape[0] < matrix.shape[1]
    moved = torch.from_numpy(np.ascontiguousarray(vectors)).to(matrix.device)
    others = ((matrix.T if wide else matrix) @ moved).cpu().numpy() / np.where(values > 0, values, 1.0)
    return Directions(values, vectors, others) if wide else Directions(values, others, vectors)
