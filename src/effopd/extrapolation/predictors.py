"""Offline extrapolation: where a parameter would be later, from where training has taken it so far.

One small function a method, of one parameter at a time, in numpy. Light to import: the plan reads it.
docs/baselines.md says what the originals do, docs/plugins.md how to add a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np


@dataclass(frozen=True)
class Trajectory:
    """How far a parameter has come: its updates since the base, at every kept step up to the present one, t."""

    steps: np.ndarray  # [k], increasing, from 1; the last is t
    updates: np.ndarray  # [k, *shape of the parameter], W_s - W_0, float64
    accuracies: np.ndarray | None  # [1 + k], of the base and of every kept state; None if the method asks for none

    @staticmethod
    def of(updates: Mapping[int, np.ndarray], accuracies: Mapping[int, float] | None = None) -> Trajectory:
        """The path of updates by step, in whatever order, and of accuracies by step, the base's (step 0) included."""
        steps = sorted(updates)
        known = None if accuracies is None else np.array([accuracies[step] for step in (0, *steps)], np.float64)
        return Trajectory(np.array(steps), np.stack([updates[step] for step in steps]).astype(np.float64), known)


@dataclass(frozen=True)
class Method:
    """How an update is predicted, and what that takes."""

    predict: Callable[
        [Trajectory, float], np.ndarray
    ]  # (trajectory, coefficient) -> the predicted update, of the parameter's shape
    states: int = 1  # kept states that it needs, at least
    accuracies: bool = False  # whether it asks how well each of them does on the validation split


def _expo(path: Trajectory, coefficient: float) -> np.ndarray:
    """ExPO: theta_t + c (theta_t - theta_0), as an update. Where the path is straight, step t (1 + c)."""
    return np.asarray(path.updates[-1] * (1 + coefficient))


def _relex(path: Trajectory, coefficient: float, pace: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """RELEX (arXiv 2605.21468): the updates' first direction, its coefficient regressed on the step, at t (1 + c).

    The updates, flattened, are rows of a matrix [k, n], whose first right singular vector v is the direction; the
    coefficient of each on it is fitted by a + b pace(s), least squares. `pace` is the step itself, or its logarithm.
    """
    rows = path.updates.reshape(len(path.steps), -1)
    energies, left = np.linalg.eigh(rows @ rows.T)  # [k, k] where n may be millions
    if energies[-1] <= 0:
        return np.zeros(path.updates.shape[1:])
    coefficients = left[:, -1] * np.sqrt(energies[-1])
    direction = left[:, -1] @ rows / np.sqrt(energies[-1])
    design = np.stack([np.ones(len(path.steps)), pace(path.steps)], axis=1)
    intercept, slope = np.linalg.lstsq(design, coefficients, rcond=None)[0]
    later = pace(np.array([path.steps[-1] * (1 + coefficient)]))[0]
    return np.asarray((intercept + slope * later) * direction).reshape(path.updates.shape[1:])


def _alpha(path: Trajectory, coefficient: float) -> np.ndarray:
    """AlphaRL (arXiv 2510.00553): the first singular direction, moved to where a regression on accuracy points.

    Of each matrix update's first singular triplet s u v^T, s u [m] is regressed on the states' accuracies by partial
    least squares with one component, and read off at the accuracy max + c (max - min) of those seen so far; v is
    that of step t. Parameters that are no matrices, and all where accuracy has not changed, stay as they are at t.
    """
    assert path.accuracies is not None
    seen = path.accuracies
    if path.updates.ndim != 3 or np.ptp(seen) == 0 or not path.updates[-1].any():
        return np.asarray(path.updates[-1])
    triplets = [_first_triplet(update) for update in path.updates]
    right = triplets[-1][1]
    points = np.stack([np.zeros(len(triplets[-1][0]))] + [u if v @ right >= 0 else -u for u, v in triplets])
    wanted = seen.max() + coefficient * np.ptp(seen)
    return np.outer(_inverse_regression(points, seen, wanted), right)


def _first_triplet(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sigma_1 u_1 [m], v_1 [n]) of a matrix [m, n], the sign of the pair arbitrary; zeros of a zero matrix."""
    from scipy.linalg import eigh

    wide = matrix.shape[0] < matrix.shape[1]
    square = matrix @ matrix.T if wide else matrix.T @ matrix
    last = len(square) - 1
    _, vectors = eigh(square, subset_by_index=[last, last])
    if not wide:
        return matrix @ vectors[:, 0], vectors[:, 0]
    right = vectors[:, 0] @ matrix
    size = np.linalg.norm(right)
    return vectors[:, 0] * size, right / size if size else right


def _inverse_regression(points: np.ndarray, values: np.ndarray, wanted: float) -> np.ndarray:
    """Where the one-component PLS regression of `values` [k] on `points` [k, n] expects the value `wanted`.

    The component is read off at the score at which the regression gives that value, and mapped back to a point, as
    AlphaRL's code does.
    """
    from sklearn.cross_decomposition import PLSRegression

    model = PLSRegression(n_components=1).fit(points, values)
    scores = model.transform(points)[:, 0]
    slope = scores @ (values - values.mean()) / (scores @ scores)
    if slope == 0:
        return np.asarray(points[-1])
    return np.asarray(model.inverse_transform(np.array([[(wanted - values.mean()) / slope]]))[0])


def _linear(steps: np.ndarray) -> np.ndarray:
    return steps.astype(np.float64)


expo = Method(_expo)
relex = Method(partial(_relex, pace=_linear), states=2)
relex_log = Method(partial(_relex, pace=np.log), states=2)
alpha = Method(_alpha, states=2, accuracies=True)
