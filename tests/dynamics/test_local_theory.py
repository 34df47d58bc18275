"""The local theory against explicit Jacobians and dense eigendecompositions, on a model small enough to build them."""

import math

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from effopd.data.rollouts import Rollouts
from effopd.dynamics.krylov import Krylov, lanczos
from effopd.dynamics.linearized import LinearizedModel, flat, unflattened
from effopd.dynamics.local_theory import (
    cosine,
    descent_coordinates,
    fisher_product,
    logit_residual,
    quadratic_change,
    quadratic_change_in_basis,
    share_in_directions,
    steps_of_length,
    weighted_residual,
)

VOCABULARY = 7


def small_model(seed):
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=32, tie_word_embeddings=True, initializer_range=0.5,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval().double()


def some_rollouts():
    random = np.random.default_rng(0)
    prompts = [[2, 3, 4], [5, 6], [2, 4, 6, 3]]
    completions = [random.integers(1, VOCABULARY, size).tolist() for size in (3, 5, 2)]
    return Rollouts(prompts, completions, [np.zeros(len(c), np.float32) for c in completions], [False] * 3)


class Dense:
    """Everything built explicitly: J [M, V, P] by reverse mode, F, A, b and A's eigenpairs."""

    def __init__(self, student, teacher):
        self.linear = LinearizedModel(student, some_rollouts(), pad_id=0, batch_size=3)
        self.origin = self.linear.origin
        of_teacher = LinearizedModel(teacher, some_rollouts(), pad_id=0, batch_size=3)
        self.teacher_logits = of_teacher.logits(of_teacher.origin)
        (batch,) = self.linear.batches
        self.jacobian = torch.autograd.functional.jacobian(lambda p: self.linear._logits(p, batch), self.origin)
        self.student_logits = self.linear.logits(self.origin)
        p = torch.softmax(self.student_logits, -1)
        self.fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        contexts = len(p)
        self.a = torch.einsum("mvp,mvw,mwq->pq", self.jacobian, self.fisher, self.jacobian) / contexts
        residual = self.teacher_logits - self.student_logits
        self.b = torch.einsum("mvp,mvw,mw->p", self.jacobian, self.fisher, residual) / contexts
        values, vectors = torch.linalg.eigh(self.a)
        self.values, self.vectors = values.flip(0).numpy(), vectors.flip(1)


@pytest.fixture(scope="module")
def dense():
    return Dense(small_model(0), small_model(1))


@pytest.fixture(scope="module")
def krylov(dense):
    return lanczos(dense.linear.gauss_newton_product, dense.b, 30)


def test_the_jacobian_is_the_slope_of_the_logits(dense):
    torch.manual_seed(2)
    v = torch.randn_like(dense.origin)
    small = 1e-3  # the model normalizes in float32: no smaller
    ahead, behind = (dense.linear.logits(dense.origin + sign * small * v) for sign in (1, -1))
    found = dense.linear.jacobian_product(v)
    torch.testing.assert_close(found, (ahead - behind) / (2 * small), rtol=1e-2, atol=1e-2 * float(found.abs().max()))
    torch.testing.assert_close(found, dense.jacobian @ v, rtol=1e-4, atol=1e-5)


def test_products_with_the_transpose_and_with_a_are_the_dense_ones(dense):
    torch.manual_seed(3)
    v, u = torch.randn_like(dense.origin), torch.randn_like(dense.student_logits)
    torch.testing.assert_close(dense.linear.gauss_newton_product(v), dense.a @ v, rtol=1e-4, atol=1e-5)
    pulled = torch.einsum("mvp,mv->p", dense.jacobian, u) / len(u)
    torch.testing.assert_close(dense.linear.transposed_product(u), pulled, rtol=1e-4, atol=1e-5)


def test_b_is_minus_the_gradient_of_the_reverse_kl(dense):
    parameters = dense.origin.clone().requires_grad_()
    student = torch.log_softmax(dense.linear._logits(parameters, dense.linear.batches[0]), -1)
    teacher = torch.log_softmax(dense.teacher_logits, -1)
    loss = (student.exp() * (student - teacher)).sum(-1).mean()
    (gradient,) = torch.autograd.grad(loss, parameters)
    b = dense.linear.descent_direction(dense.teacher_logits)
    torch.testing.assert_close(b, -gradient, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(b, dense.b, rtol=1e-4, atol=1e-6)
    assert dense.linear.reverse_kl(dense.origin, dense.teacher_logits) == pytest.approx(loss.item(), rel=1e-5)


def test_nothing_depends_on_how_contexts_are_batched(dense):
    split = LinearizedModel(dense.linear.model, some_rollouts(), pad_id=0, batch_size=1)
    torch.manual_seed(4)
    v = torch.randn_like(dense.origin)
    assert split.contexts == dense.linear.contexts == 10
    for product in ("jacobian_product", "gauss_newton_product", "logits"):
        torch.testing.assert_close(getattr(split, product)(v), getattr(dense.linear, product)(v), rtol=1e-4, atol=1e-5)


def test_weights_become_a_vector_and_back():
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7.0), "c": torch.ones(1)}
    back = unflattened(flat(weights), {name: tensor.shape for name, tensor in weights.items()})
    assert all((back[name] == weights[name]).all() and back[name].shape == weights[name].shape for name in weights)


def test_leading_eigenpairs_and_shares_are_the_dense_ones(dense, krylov):
    ritz = krylov.ritz()
    settled = int((ritz.relative_residuals < 1e-3).cumprod().sum())
    assert settled >= 4, "nothing converged: the test proves nothing"
    np.testing.assert_allclose(ritz.values[:settled], dense.values[:settled], rtol=1e-4)
    parts = (dense.vectors.T @ dense.b).square().cumsum(0) / dense.b.square().sum()
    np.testing.assert_allclose(ritz.cumulative_shares[:settled], parts[:settled].numpy(), rtol=1e-3)
    leading = krylov.vector(ritz.coordinates[:, 0])
    assert abs(cosine(leading, dense.vectors[:, 0])) == pytest.approx(1, abs=1e-6)
    residual = dense.a @ leading - ritz.values[0] * leading
    assert float(residual.norm()) <= ritz.residuals[0] + 1e-5 * ritz.values[0]
    assert ritz.cumulative_shares[-1] == pytest.approx(1)


def test_the_basis_stays_orthonormal_and_convergence_shows(dense, krylov):
    gram = (krylov.basis @ krylov.basis.T).numpy()
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-10)
    fewer = krylov.shortened(8)
    assert len(fewer.diagonal) == 8
    again = lanczos(dense.linear.gauss_newton_product, dense.b, 8)
    np.testing.assert_allclose(fewer.ritz().values, again.ritz().values, rtol=1e-8)
    assert fewer.ritz().residuals[0] > krylov.ritz().residuals[0]


def test_the_predicted_path_is_gradient_descent_on_the_quadratic(dense, krylov):
    ritz = krylov.ritz()
    rate = 1 / dense.values[0]
    update = torch.zeros_like(dense.b)
    for step in range(1, 13):
        update = update + rate * (dense.b - dense.a @ update)
        found = krylov.vector(descent_coordinates(ritz, rate, step))
        torch.testing.assert_close(found, update, rtol=1e-3, atol=1e-4 * float(update.abs().max()))


def test_a_long_path_is_the_closed_form_of_the_dense_eigenpairs(dense, krylov):
    rate, steps = 1 / dense.values[0], 40
    lengths = np.array([(1 - (1 - rate * x) ** steps) / x if x > 1e-9 else rate * steps for x in dense.values])
    wanted = dense.vectors @ (torch.from_numpy(lengths) * (dense.vectors.T @ dense.b))
    found = krylov.vector(descent_coordinates(krylov.ritz(), rate, steps))
    assert cosine(found, wanted) == pytest.approx(1, abs=1e-4)
    assert float(found.norm()) == pytest.approx(float(wanted.norm()), rel=1e-3)


def test_steps_of_a_length_undo_the_path(krylov):
    ritz = krylov.ritz()
    rate = 0.1 / ritz.values[0]
    for steps in (0.5, 3.0, 117.0):
        length = float(np.linalg.norm(descent_coordinates(ritz, rate, steps)))
        assert steps_of_length(ritz, rate, length) == pytest.approx(steps, rel=1e-6)
    assert steps_of_length(ritz, rate, 0.0) == pytest.approx(0, abs=1e-9)
    settled = np.array([2.0, 1.0])
    finite = Krylov(torch.eye(2), settled, np.zeros(2), 1.0).ritz()
    assert math.isinf(steps_of_length(finite, 0.5, 10.0))


def test_the_quadratic_is_the_same_in_the_basis_and_outside(dense, krylov):
    coordinates = descent_coordinates(krylov.ritz(), 1 / dense.values[0], 9)
    update = krylov.vector(coordinates)
    wanted = float(update @ dense.a @ update / 2 - dense.b @ update)
    assert quadratic_change_in_basis(krylov, coordinates) == pytest.approx(wanted, rel=1e-4)
    assert quadratic_change(dense.a @ update, dense.b, update) == pytest.approx(wanted, rel=1e-10)
    residual = dense.teacher_logits - dense.student_logits
    start = float(torch.einsum("mv,mvw,mw->", residual, dense.fisher, residual)) / len(residual) / 2
    away = dense.jacobian @ update - residual
    assert start + wanted == pytest.approx(
        float(torch.einsum("mv,mvw,mw->", away, dense.fisher, away)) / len(away) / 2, rel=1e-4
    )


def test_residuals_do_not_see_what_softmax_does_not_see(dense):
    student, teacher = dense.student_logits, dense.teacher_logits
    shifted = teacher + torch.arange(len(teacher), dtype=torch.float64)[:, None]
    for residual in (logit_residual, weighted_residual):
        torch.testing.assert_close(residual(student, shifted), residual(student, teacher), rtol=1e-9, atol=1e-9)
    assert torch.linalg.matrix_rank(logit_residual(student, teacher)) == VOCABULARY - 1
    squared = weighted_residual(student, teacher).square().sum(-1)
    r = teacher - student
    torch.testing.assert_close(squared, torch.einsum("mv,mvw,mw->m", r, dense.fisher, r))
    torch.testing.assert_close(
        fisher_product(torch.softmax(student, -1), r), torch.einsum("mvw,mw->mv", dense.fisher, r)
    )


def test_a_share_in_directions_is_that_of_the_projection():
    torch.manual_seed(5)
    matrix = torch.randn(9, 6)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(matrix)
    assert share_in_directions(matrix, left, right.T) == pytest.approx(1)
    wanted = float(values[:2].square().sum() / values.square().sum())
    assert share_in_directions(matrix, left[:, :2], right.T[:, :2]) == pytest.approx(wanted)
    others = [share_in_directions(torch.randn(9, 6), left[:, :2], right.T[:, :2]) for _ in range(400)]
    assert np.mean(others) == pytest.approx(2 * 2 / (9 * 6), rel=0.15)
    assert math.isnan(share_in_directions(torch.zeros(9, 6), left, right.T))
    assert math.isnan(cosine(torch.zeros(3), torch.ones(3)))


def test_lanczos_ends_where_the_start_is_used_up_and_refuses_none():
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64))
    found = lanczos(lambda v: matrix @ v, torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64), 4)
    np.testing.assert_allclose(found.ritz().values, [3, 1], atol=1e-12)
    np.testing.assert_allclose(found.ritz().residuals, 0, atol=1e-12)
    for start in (torch.zeros(4), torch.full((4,), math.nan)):
        with pytest.raises(ValueError, match="cannot start from a vector of length"):
            lanczos(lambda v: v, start, 2)
