"""The local theory of on-policy distillation (paper section 3, item 10), as pure functions.

Around the student's first weights theta_0 the logits are taken as linear, z_theta ~ z_0 + J dtheta, and the reverse KL
to the teacher as quadratic, with p_0 = softmax(z_0) and the residual r = z* - z_0 to the teacher's logits:

    KL ~ 1/2 (J dtheta - r)^T F (J dtheta - r),   F = Diag(p_0) - p_0 p_0^T.

Its mean over contexts is 1/2 dtheta^T A dtheta - b^T dtheta + c with A = E[J^T F J], b = E[J^T F r] and
c = E[r^T F r] / 2. The quadratic is an approximation, but its slope is not: the gradient of the reverse KL with respect
to z at z_0 is exactly -F r, hence -b is exactly the gradient of the loss, and b is where gradient descent first goes.

Shapes: M contexts (completion tokens), V vocabulary entries, P parameters.
"""

from __future__ import annotations

import numpy as np
import torch

from effopd.dynamics.krylov import Krylov, RitzPairs


def fisher_product(probabilities: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """F x = p * (x - p . x) for each row: probabilities and vectors [M, V] -> [M, V].

    F has the kernel 1: adding a constant to x, to which softmax is blind, changes nothing.
    """
    return probabilities * (vectors - (probabilities * vectors).sum(-1, keepdim=True))


def logit_residual(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """r = z* - z_0 less its mean over the vocabulary: both [M, V] -> float64 [M, V].

    Logits are defined up to a constant for each context. Taking off the mean picks the shortest of the residuals that
    mean the same; the rank of the matrix is then at most V - 1.
    """
    residual = teacher_logits.double() - student_logits.double()
    return residual - residual.mean(-1, keepdim=True)


def weighted_residual(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """sqrt(p_0) * (r - p_0 . r), the residual as the KL sees it: both [M, V] -> float64 [M, V].

    The squared length of a row is r^T F r, twice the quadratic KL of its context. Tokens that the student never says
    count for nothing, however far apart the logits are there.
    """
    residual = teacher_logits.double() - student_logits.double()
    probabilities = torch.softmax(student_logits.double(), -1)
    return probabilities.sqrt() * (residual - (probabilities * residual).sum(-1, keepdim=True))


def descent_coordinates(ritz: RitzPairs, rate: float, steps: float) -> np.ndarray:
    """dtheta_s = sum_i (1 - (1 - eta l_i)^s) / l_i beta_i u_i, as coordinates in the Krylov basis [m].

    The point that s steps of gradient descent at learning rate eta reach on the quadratic. `steps` need not be whole
    for eta < 1 / l_1. Directions without curvature go on straight: eta s beta_i.
    """
    values = np.maximum(ritz.values, 0)
    shrinkage = -np.expm1(steps * np.log1p(-np.minimum(rate * values, 1 - 1e-15)))
    flat = values * rate * steps < 1e-9
    lengths = np.where(flat, rate * steps, shrinkage / np.where(flat, 1, values))
    return np.asarray(ritz.coordinates @ (lengths * ritz.parts))


def steps_of_length(ritz: RitzPairs, rate: float, length: float) -> float:
    """The (not whole) number of steps after which || dtheta_s || is `length`, by bisection; eta < 1 / l_1.

    The path only ever gets longer. Infinity where it never gets that long.
    """

    def reached(steps: float) -> float:
        return float(np.linalg.norm(descent_coordinates(ritz, rate, steps)))

    low, high = 0.0, 1.0
    while reached(high) < length:
        low, high = high, 2 * high
        if high > 1e15:
            return float("inf")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < length else (low, middle)
    return high


def quadratic_change(curved: torch.Tensor, b: torch.Tensor, update: torch.Tensor) -> float:
    """1/2 d^T A d - b^T d, the change of the quadratic KL along d = `update`; `curved` is A d. All [P]."""
    d = update.double()
    return float(d @ curved.double() / 2 - b.double() @ d)


def quadratic_change_in_basis(krylov: Krylov, coordinates: np.ndarray) -> float:
    """The same for a vector of the Krylov space, from its coordinates [m] alone."""
    inside = krylov.diagonal @ np.square(coordinates)
    beside = 2 * krylov.off_diagonal[:-1] @ (coordinates[:-1] * coordinates[1:])
    return float((inside + beside) / 2 - krylov.length * coordinates[0])


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """The cosine of the angle between two vectors, in float64; NaN if one is zero."""
    a, b = a.double(), b.double()
    lengths = float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return float(a @ b) / lengths if lengths else float("nan")


def share_in_directions(matrix: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> float:
    """|| U^T B V ||_F^2 / || B ||_F^2: the share of B [m, n] inside the directions U [m, k], V [n, k] (orthonormal).

    A random B has a share of k^2 / (m n). NaN of a zero matrix.
    """
    matrix = matrix.double()
    total = float(matrix.square().sum())
    inside = float((left.double().T @ matrix @ right.double()).square().sum())
    return inside / total if total else float("nan")
