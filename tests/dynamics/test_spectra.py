"""Spectral metrics against numpy on matrices with known spectra, by every method, with the errors they report."""

import math

import numpy as np
import pytest
import torch

from effopd.dynamics import spectra
from effopd.dynamics.gram import NumpyGram, TorchGram, gram_of
from effopd.dynamics.quadrature import BlockLanczos, Calibration, ExactTraces, _orthonormal
from effopd.dynamics.spectra import decompose, spectrum, top_count

METRICS = ("spectral_norm", "spectral_to_frobenius", "effective_rank", "effective_rank_squared", "top1pct_norm_ratio")
ERRORS = {
    "spectral_norm": "spectral_norm_error",
    "spectral_to_frobenius": "spectral_norm_error",
    "effective_rank": "effective_rank_error",
    "effective_rank_squared": "effective_rank_squared_error",
    "top1pct_norm_ratio": "top1pct_norm_ratio_error",
}


def matrix_with(values, rows, columns, seed=0):
    """A float32 matrix [rows, columns] with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    left, right = (
        torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0]
        for size in (rows, columns)
    )
    return ((left * torch.as_tensor(values, dtype=torch.float64)) @ right.T).float()


def by_definition(matrix):
    """The metrics as the paper prints them, from numpy's singular values in float64."""
    sigma = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    p, q = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
    p, q = p[p > 0], q[q > 0]
    top = math.ceil(len(sigma) / 100)
    return {
        "spectral_norm": sigma[0],
        "spectral_to_frobenius": sigma[0] / np.linalg.norm(sigma),
        "effective_rank": np.exp(-(p * np.log(p)).sum()),
        "effective_rank_squared": np.exp(-(q * np.log(q)).sum()),
        "top1pct_norm_ratio": np.linalg.norm(sigma[:top]) / np.linalg.norm(sigma),
        "frobenius_norm": np.linalg.norm(sigma),
    }


def assert_right(found, matrix, tolerance=1e-3):
    """Every metric within the tolerance, and within what it reports (and float32's rounding of the matrix)."""
    expected = by_definition(matrix)
    for name in METRICS:
        error = abs(getattr(found, name) / expected[name] - 1)
        assert error <= min(tolerance, getattr(found, ERRORS[name]) + 1e-6), (name, error)
    assert found.frobenius_norm == pytest.approx(expected["frobenius_norm"], rel=1e-6)


def test_metrics_of_known_singular_values():
    equal = np.full(200, 3.0)
    assert spectra.spectral_norm(equal) == 3
    assert spectra.spectral_to_frobenius(equal) == pytest.approx(200**-0.5)
    assert spectra.effective_rank(equal) == pytest.approx(200)
    assert spectra.effective_rank_squared(equal) == pytest.approx(200)
    assert spectra.top_norm_ratio(equal) == pytest.approx(0.1)  # 2 of 200
    one = np.array([0.0, 5.0, 0.0])
    assert spectra.effective_rank(one) == spectra.effective_rank_squared(one) == spectra.spectral_to_frobenius(one) == 1
    # p = 3/4, 1/4, and q = 9/10, 1/10
    two = np.array([1.0, 3.0])
    assert spectra.effective_rank(two) == pytest.approx(4 / 3**0.75)
    assert spectra.effective_rank_squared(two) == pytest.approx(10 / 9**0.9)
    assert spectra.effective_rank(two, np.array([2.0, 2.0])) == pytest.approx(8 / 3**0.75)


@pytest.mark.parametrize(("rank", "count"), [(1, 1), (99, 1), (100, 1), (101, 2), (700, 7), (1024, 11), (1400, 14)])
def test_the_top_one_percent_is_rounded_up(rank, count):
    assert top_count(rank) == count


def test_the_top_fraction_does_not_round_up_for_float_error():
    assert top_count(100, 0.07) == 7  # 0.07 * 100 is 7.000000000000001
    assert top_count(10, 1.0) == 10


DECAYS = {
    "gaussian": None,
    "low rank and noise": None,
    "flat": np.concatenate([np.geomspace(30, 3, 16), np.full(584, 0.5)]),
    "power 0.6": np.arange(1, 601.0) ** -0.6,
    "power 1": np.arange(1, 601.0) ** -1.0,
    "exponential": np.exp(-np.arange(600) / 40),
    "rank 5": np.concatenate([np.ones(5), np.zeros(595)]),
}


def matrix_of(kind, rows, columns):
    """A matrix of one of DECAYS."""
    if (values := DECAYS[kind]) is not None:
        return matrix_with(values, rows, columns)
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    return noise if kind == "gaussian" else matrix_with(np.geomspace(30, 3, 16), rows, columns) + 0.015 * noise


@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("shape", [(1800, 600), (600, 1800), (600, 600)])
def test_metrics_agree_with_numpy_and_the_errors_cover_the_difference(kind, shape):
    matrix = matrix_of(kind, *shape)
    assert_right(spectrum(matrix), matrix)


def extreme(kind):
    generator = torch.Generator().manual_seed(0)
    noise, zeros = torch.randn(900, 600, generator=generator), torch.zeros(900, 600)
    chosen = torch.rand(900, 600, generator=generator)
    if kind == "one entry":
        zeros[3, 4] = 2.0
    if kind == "one row":
        zeros[3] = noise[3]
    if kind == "half an identity":
        zeros[:300, :300] = torch.eye(300)
    return {
        "identity": torch.eye(900, 600),
        "constant": torch.ones(900, 600),
        "constant and a little noise": 1 + 1e-4 * noise,
        "few columns, repeated": noise[:, :10].repeat(1, 60),
        "sparse": noise * (chosen < 1e-3),
        "sparse and rounded to bf16": (1e-6 * noise).bfloat16().float() * (chosen < 0.02),
    }.get(kind, zeros)


@pytest.mark.parametrize(
    "kind",
    [
        "one entry",
        "one row",
        "half an identity",
        "identity",
        "constant",
        "constant and a little noise",
        "few columns, repeated",
        "sparse",
        "sparse and rounded to bf16",
    ],
)
def test_extreme_matrices(kind):
    matrix = extreme(kind)
    assert_right(spectrum(matrix), matrix)


def test_each_spectrum_gets_the_cheapest_method_that_is_exact_enough():
    noisy = matrix_of("low rank and noise", 1800, 600)
    assert spectrum(noisy).method == "lanczos"
    assert spectrum(noisy, tolerance=1e-5).method in ("gram32", "gram64")
    assert spectrum(matrix_with(np.arange(1, 601.0) ** -0.5, 1800, 600), tolerance=1e-4).method == "lanczos"
    assert spectrum(noisy, tolerance=0).method == "svd"
    assert spectrum(matrix_with(DECAYS["exponential"], 1800, 600)).method == "gram64"
    assert spectrum(matrix_with(np.ones(50), 80, 50)).method == "gram32"
    assert spectrum(matrix_with([1.0, 1e-9], 80, 50), tolerance=1e-9).method == "svd"


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 0])
def test_a_tighter_tolerance_is_kept(tolerance):
    matrix = matrix_with(DECAYS["power 0.6"], 900, 600)
    assert_right(spectrum(matrix, tolerance), matrix, max(tolerance, 1e-6))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (5, 3), (33, 130)])
def test_tiny_matrices(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert_right(spectrum(matrix), matrix)


def test_a_zero_matrix_has_no_spectrum():
    found, directions = decompose(torch.zeros(40, 30), 5)
    assert (found.method, found.spectral_norm, found.frobenius_norm, found.error) == ("zero", 0, 0, 0)
    assert all(math.isnan(getattr(found, name)) for name in METRICS[1:])
    assert directions.left.shape == (40, 5)
    assert directions.right.shape == (30, 5)
    assert not directions.values.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_matrix_that_is_not_finite_is_refused(bad):
    matrix = torch.ones(20, 20)
    matrix[3, 4] = bad
    with pytest.raises(ValueError, match="not finite"):
        spectrum(matrix)


@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e-6, 1e15])
def test_scale_changes_norms_alone(scale):
    matrix = matrix_with(DECAYS["power 0.6"][:100], 150, 100)
    one, other = spectrum(matrix), spectrum(matrix * scale)
    assert other.spectral_norm == pytest.approx(one.spectral_norm * scale, rel=1e-5)
    assert other.frobenius_norm == pytest.approx(one.frobenius_norm * scale, rel=1e-5)
    for name in METRICS[1:]:
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-4)


def test_transposing_and_permuting_change_nothing_that_matters():
    matrix = matrix_of("low rank and noise", 900, 600)
    shuffled = matrix[torch.randperm(900, generator=torch.Generator().manual_seed(3))]
    for other in (matrix.T, matrix.T.contiguous(), shuffled, -matrix):
        for name in METRICS:
            assert getattr(spectrum(other), name) == pytest.approx(getattr(spectrum(matrix), name), rel=1e-3)


def test_equal_matrices_give_equal_bits():
    matrix = matrix_with(DECAYS["power 0.6"], 900, 600)
    assert spectrum(matrix) == spectrum(matrix.clone())


@pytest.mark.parametrize("shape", [(700, 600), (600, 700), (60, 50)])
@pytest.mark.parametrize("tolerance", [1e-3, 0])
def test_leading_directions_are_the_singular_vectors(shape, tolerance):
    values = np.concatenate([np.linspace(40, 21, 20), np.full(min(shape) - 20, 0.5)])
    matrix = matrix_with(values, *shape)
    _, found = decompose(matrix, 20, tolerance)
    left, sigma, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(found.values, sigma[:20], rtol=1e-5)
    assert (np.abs((found.left * left[:, :20]).sum(0)) > 1 - 1e-4).all()
    assert (np.abs((found.right * right[:20].T).sum(0)) > 1 - 1e-4).all()
    # the two sides belong together: u^T A v = sigma, with its sign
    np.testing.assert_allclose(
        np.einsum("mi,mn,ni->i", found.left, matrix.numpy(), found.right), found.values, rtol=1e-4
    )


@pytest.mark.parametrize("shape", [(700, 600), (60, 90)])
def test_directions_beyond_the_rank_are_zero(shape):
    generator = torch.Generator().manual_seed(0)
    factors = (torch.randint(-3, 4, (size, 3), generator=generator).float() for size in shape)
    matrix = torch.mm(next(factors), next(factors).T)  # of whole numbers: nothing is rounded
    _, found = decompose(matrix, 6)
    expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[:3]
    np.testing.assert_allclose(found.values, [*expected, 0, 0, 0], rtol=1e-5)
    for side in (found.left, found.right):
        np.testing.assert_allclose(np.linalg.norm(side, axis=0), [1, 1, 1, 0, 0, 0], rtol=1e-5)


def test_more_directions_than_there_are():
    _, found = decompose(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), 20)
    assert found.left.shape == (9, 4)
    assert found.right.shape == (4, 4)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_both_gram_implementations_agree(precision):
    matrix = matrix_with(DECAYS["power 0.6"][:200], 9000, 200)  # more rows than are taken at a time
    exact = (matrix.double().T @ matrix.double()).numpy()
    block = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    vectors = np.linalg.qr(block)[0]
    rtol = 1e-4 if precision is torch.float32 else 1e-6
    for gram in (gram_of(matrix, precision), TorchGram(matrix, precision), TorchGram(matrix.T, precision)):
        assert gram.size == 200
        assert gram.trace == pytest.approx(np.trace(exact), rel=rtol)
        assert gram.norm == pytest.approx(np.linalg.norm(exact), rel=rtol)
        np.testing.assert_allclose(gram.multiply(block), exact @ block, rtol=rtol, atol=1e-5)
        np.testing.assert_allclose(gram.eigenvalues(), np.linalg.eigvalsh(exact), rtol=rtol)
        assert gram.log_determinant(0.01) == pytest.approx(np.linalg.slogdet(exact + 0.01 * np.eye(200))[1], rel=rtol)
        with pytest.raises(ValueError, match="not positive definite"):
            gram.log_determinant(-0.5)
        values = np.array([4, 3, 2, 1], np.float32)
        left = np.linalg.norm(exact - (vectors * values) @ vectors.T)
        assert gram.norm_without(vectors, values) == pytest.approx(left, rel=rtol)
        top, directions = gram.leading(3)
        np.testing.assert_allclose(top, np.linalg.eigvalsh(exact)[::-1][:3], rtol=rtol)
        np.testing.assert_allclose(exact @ directions, directions * top, atol=1e-4)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["rows", "columns", "wide", "part of a wider one"])
def test_the_product_is_exactly_symmetric_and_right_to_its_precision(layout, precision):
    matrix = torch.randn(5000, 96, generator=torch.Generator().manual_seed(0)).numpy()
    given = {
        "rows": matrix,
        "columns": np.asfortranarray(matrix),
        "wide": np.ascontiguousarray(matrix.T),
        "part of a wider one": np.hstack([matrix, matrix])[:, :96],
    }[layout]
    product = NumpyGram(given, precision).multiply(np.eye(96, dtype=precision))
    np.testing.assert_array_equal(product, product.T)
    exact = matrix.astype(np.float64).T @ matrix.astype(np.float64)
    np.testing.assert_allclose(product, exact, atol=8 * np.finfo(precision).eps * exact.max())


@pytest.mark.parametrize("kind", ["gaussian", "power 1", "low rank and noise"])
def test_the_noise_of_a_gram_matrix_covers_its_eigenvalues_errors(kind):
    matrix = matrix_of(kind, 1800, 600)
    for gram in (NumpyGram(matrix.numpy(), np.float32), TorchGram(matrix, torch.float32)):
        errors = gram.eigenvalues() - NumpyGram(matrix.numpy(), np.float64).eigenvalues()
        assert 0.01 * gram.noise < np.sqrt((errors**2).mean()) < 3 * gram.noise


def test_a_calibrated_quadrature_has_the_exact_traces():
    matrix = matrix_with(DECAYS["power 0.6"], 900, 600)
    gram = gram_of(matrix, torch.float32)
    lanczos, traces = BlockLanczos(gram, 16), ExactTraces(gram)
    calibration = Calibration(lanczos, lanczos.grow(9), traces)
    assert traces.refine(calibration.quadrature())
    quadrature = calibration.quadrature()
    exact = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    (shift,) = traces.log_determinants
    for function in (np.ones_like, lambda x: x, np.square, lambda x: np.log(x + shift)):
        estimate = quadrature.weights @ function(quadrature.values)
        assert estimate == pytest.approx(function(exact).sum(), rel=1e-4)
    # and nothing is left to sampling for a combination of them
    assert quadrature.standard_error(2 + 3 * quadrature.values) < 1e-6
    assert quadrature.standard_error(np.sqrt(quadrature.values)) > 1e-6


def test_ritz_pairs_are_what_they_claim():
    matrix = matrix_with(DECAYS["power 1"], 900, 600)
    lanczos = BlockLanczos(gram_of(matrix, torch.float32), 16)
    ritz = lanczos.grow(6)
    np.testing.assert_allclose(lanczos.basis.T @ lanczos.basis, np.eye(96), atol=1e-5)
    np.testing.assert_allclose(ritz.shares.sum(axis=1), 1, rtol=1e-4)
    vectors = lanczos.basis @ ritz.coordinates
    exact = (matrix.double().T @ matrix.double()).numpy()
    residuals = np.linalg.norm(exact @ vectors - vectors * ritz.values, axis=0)
    np.testing.assert_allclose(ritz.residuals, residuals, atol=1e-5)
    assert (np.diff(ritz.values) <= 0).all()


@pytest.mark.parametrize("dependence", [1.0, 1e-2, 1e-5, 0.0])
def test_a_block_is_made_orthonormal_however_dependent_its_columns_are(dependence):
    block = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float32)
    block[:, 5] = block[:, 2] + dependence * block[:, 5]
    vectors, factor = _orthonormal(block)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(16), atol=2e-6)
    np.testing.assert_allclose(vectors @ factor, block, atol=2e-5)
    np.testing.assert_array_equal(np.tril(factor, -1), 0)


@pytest.mark.parametrize("values", [np.arange(1, 601.0) ** -1.0, np.linspace(1, 1e-3, 600)], ids=["power", "linear"])
def test_an_estimate_without_hope_is_given_up_before_it_costs_a_factorisation(values, monkeypatch):
    matrix = matrix_with(values, 1800, 600)
    monkeypatch.setattr(ExactTraces, "refine", lambda *_: pytest.fail("factorised"))
    assert spectrum(matrix).method == "gram32"
    assert_right(spectrum(matrix), matrix)
