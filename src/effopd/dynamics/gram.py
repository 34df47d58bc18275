"""Gram matrices: the singular values of a tall or wide matrix through the small square matrix of its inner products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.linalg
import torch

CHUNK = 4096  # rows converted at a time
_SAMPLES = 8


class Gram(ABC):
    """G = A^T A of a matrix A [m, n] with m >= n (A A^T of a wide one), in one precision; A is not kept.

    The eigenvalues of G are the squared singular values of A, in n^2 m + O(n^3) operations that are nearly all matrix
    products. The price is that rounding hides singular values below sqrt(precision) * sigma_1: `noise` says how much.
    """

    size: int  # n
    trace: float  # sum of the squared singular values
    norm: float  # Frobenius norm of G
    noise: float  # standard error of an eigenvalue from rounding, in G and in the eigenvalue solver

    @abstractmethod
    def multiply(self, block: np.ndarray) -> np.ndarray:
        """G @ block: [n, b] -> [n, b]."""

    @abstractmethod
    def log_determinant(self, shift: float) -> float:
        """ln det(G + shift I) = sum_i ln(lambda_i + shift), by Cholesky. Raises ValueError if it is not positive."""

    @abstractmethod
    def norm_without(self, vectors: np.ndarray, values: np.ndarray) -> float:
        """|| G - V diag(values) V^T ||_F for eigenvectors V [n, k], by subtraction: no cancellation of large sums."""

    @abstractmethod
    def eigenvalues(self) -> np.ndarray:
        """All n eigenvalues, increasing, float64."""

    @abstractmethod
    def leading(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` largest eigenvalues, decreasing, and their orthonormal eigenvectors [n, count]."""

    def _set_facts(self, diagonal: np.ndarray, norm: float, sampled: float, precision: float) -> None:
        """`sampled` is the relative rounding error of G's entries, || E ||_F / trace, as measured or modeled."""
        self.trace, self.norm = float(diagonal.sum(dtype=np.float64)), norm
        # the solver's part was measured, over many kinds of spectra: 0.02 to 0.5 units in the last place of the norm
        self.noise = float(np.hypot(sampled * self.trace / self.size**0.5, 0.5 * precision * norm))


class NumpyGram(Gram):
    """On the CPU, by numpy's and scipy's BLAS."""

    def __init__(self, matrix: np.ndarray, precision: type[np.floating[Any]]) -> None:
        """`matrix` is float32 [m, n]; `precision` is numpy.float32 or numpy.float64."""
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        self.size = tall.shape[1]
        if precision is np.float32:
            self._gram = tall.T @ tall  # numpy sees A^T A and has BLAS compute one triangle (syrk): half the operations
        else:
            self._gram = np.zeros((self.size, self.size))
            for rows in _chunks(tall.shape[0]):
                part = tall[rows].astype(np.float64)
                self._gram += part.T @ part
        eps = float(np.finfo(precision).eps) / 2
        sampled = 4 * eps if precision is np.float64 else _sampled_error(tall, self._gram)
        self._set_facts(self._gram.diagonal(), float(np.linalg.norm(self._gram)), sampled, eps)

    def multiply(self, block: np.ndarray) -> np.ndarray:
        return np.asarray(self._gram @ np.ascontiguousarray(block))  # a third faster than with columns of a wider array

    def log_determinant(self, shift: float) -> float:
        shifted = self._gram.copy()
        shifted.reshape(-1)[:: self.size + 1] += shift
        (potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), (shifted,))
        factor, failed = potrf(shifted.T, lower=1, overwrite_a=1, clean=0)  # the transpose is in LAPACK's order
        if failed:
            raise ValueError(f"G + {shift:g} I is not positive definite")
        return 2 * float(np.log(factor.diagonal()).sum(dtype=np.float64))

    def norm_without(self, vectors: np.ndarray, values: np.ndarray) -> float:
        scaled, square = vectors * values, 0.0
        for start in range(0, self.size, 256):  # what fits in the cache
            rows = slice(start, start + 256)
            left = self._gram[rows] - scaled[rows] @ vectors.T
            square += float(np.vdot(left, left))
        return float(square**0.5)

    def eigenvalues(self) -> np.ndarray:
        spectrum = scipy.linalg.eigh(
            self._gram.copy().T, eigvals_only=True, lower=False, overwrite_a=True, driver="ev", check_finite=False
        )
        return np.asarray(spectrum, np.float64)

    def leading(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = scipy.linalg.eigh(
            self._gram,
            subset_by_index=[self.size - count, self.size - 1],
            lower=False,
            driver="evr",
            check_finite=False,
        )
        return values[::-1].astype(np.float64), vectors[:, ::-1]


class TorchGram(Gram):
    """On any torch device; meant for a GPU."""

    def __init__(self, matrix: torch.Tensor, precision: torch.dtype) -> None:
        """`matrix` is float32 [m, n]; `precision` is torch.float32 or torch.float64."""
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        self.size = tall.shape[1]
        self._gram = torch.zeros(self.size, self.size, dtype=precision, device=matrix.device)
        for rows in _chunks(tall.shape[0]):
            part = tall[rows].to(precision)
            self._gram.addmm_(part.T, part)
        eps = torch.finfo(precision).eps / 2
        sampled = 4 * eps
        if precision is torch.float32:
            chosen = _sample(self.size)
            entries = self._gram[chosen][:, chosen].cpu().numpy()
            sampled = _relative_error(tall[:, chosen].cpu().numpy(), entries)
        norm = float(torch.linalg.vector_norm(self._gram))
        self._set_facts(self._gram.diagonal().cpu().numpy(), norm, sampled, eps)

    def _move(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._gram)

    def multiply(self, block: np.ndarray) -> np.ndarray:
        return (self._gram @ self._move(block)).cpu().numpy()

    def log_determinant(self, shift: float) -> float:
        shifted = self._gram.clone()
        shifted.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed:
            raise ValueError(f"G + {shift:g} I is not positive definite")
        return 2 * float(factor.diagonal().double().log().sum())

    def norm_without(self, vectors: np.ndarray, values: np.ndarray) -> float:
        moved = self._move(vectors)
        return float(torch.linalg.vector_norm(self._gram - (moved * self._move(values)) @ moved.T))

    def eigenvalues(self) -> np.ndarray:
        return np.asarray(torch.linalg.eigvalsh(self._gram).double().cpu())

    def leading(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = torch.linalg.eigh(self._gram)
        return values.flip(0)[:count].double().cpu().numpy(), vectors.flip(1)[:, :count].cpu().numpy()


def gram_of(matrix: torch.Tensor, precision: torch.dtype) -> Gram:
    """The Gram matrix of a float32 matrix, where the matrix is; `precision` is torch.float32 or torch.float64."""
    if matrix.device.type == "cpu":
        return NumpyGram(matrix.numpy(), np.float32 if precision is torch.float32 else np.float64)
    return TorchGram(matrix, precision)


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, rows, CHUNK))


def _sample(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, _SAMPLES).astype(int))


def _sampled_error(tall: np.ndarray, gram: np.ndarray) -> float:
    chosen = _sample(len(gram))
    return _relative_error(np.take(tall, chosen, axis=1), gram[np.ix_(chosen, chosen)])


def _relative_error(columns: np.ndarray, entries: np.ndarray) -> float:
    """Root mean square of an entry's rounding error over the lengths of its two columns, measured in float64.

    Multiplied by G's trace it estimates the Frobenius norm of the whole error, whatever the product's rounding is
    (TF32 included).
    """
    exact = columns.astype(np.float64)
    exact = exact.T @ exact
    lengths = np.sqrt(exact.diagonal())
    scale = np.outer(lengths, lengths)
    errors = (entries - exact)[scale > 0] / scale[scale > 0]
    return float(np.sqrt(np.mean(errors**2))) if errors.size else 0.0
