"""Offline extrapolation: on paths that each method's assumption describes, it is exact."""

import numpy as np
import pytest

from effopd.common.registry import BUILT_IN, load
from effopd.extrapolation import predictors
from effopd.extrapolation.predictors import Trajectory

METHODS = {name: load("predictors", name) for name in BUILT_IN["predictors"]}

STEPS = (1, 2, 4, 8)
RNG = np.random.default_rng(0)
U, V = RNG.normal(size=6), RNG.normal(size=5)


def path_of(coefficients, noise=0.0, shape=(6, 5)):
    """A path along one direction, with its accuracies rising with the coefficient."""
    direction = np.outer(U, V) if shape == (6, 5) else RNG.normal(size=shape)
    updates = {
        step: c * direction + noise * RNG.normal(size=shape) for step, c in zip(STEPS, coefficients, strict=True)
    }
    accuracies = {0: 0.3} | {step: 0.3 + 0.2 * c for step, c in zip(STEPS, coefficients, strict=True)}
    return updates, accuracies, direction


@pytest.mark.parametrize("method", ["expo", "relex", "alpha"])
@pytest.mark.parametrize("amount", [0.5, 1, 3, -0.5])
def test_a_straight_path_of_rank_one_is_predicted_exactly(method, amount):
    updates, accuracies, direction = path_of([0.1 * step for step in STEPS])
    predicted = METHODS[method].predict(Trajectory.of(updates, accuracies), amount)
    np.testing.assert_allclose(predicted, 0.8 * (1 + amount) * direction, atol=1e-12)


def test_a_logarithmic_path_is_predicted_exactly_by_the_regression_on_the_logarithm():
    updates, _, direction = path_of([0.2 + 0.1 * np.log(step) for step in STEPS])
    predicted = METHODS["relex_log"].predict(Trajectory.of(updates), 3)
    np.testing.assert_allclose(predicted, (0.2 + 0.1 * np.log(32)) * direction, atol=1e-12)
    linear = METHODS["relex"].predict(Trajectory.of(updates), 3)
    assert np.linalg.norm(linear) > 1.2 * np.linalg.norm(predicted)


def test_relex_is_the_rank_one_approximation_of_the_whole_path():
    """Against the singular value decomposition of all updates, and numpy's own polynomial fit."""
    updates, _, _ = path_of([0.1 * step for step in STEPS], noise=0.05)
    rows = np.stack([updates[step].ravel() for step in STEPS])
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    slope, intercept = np.polyfit(STEPS, left[:, 0] * values[0], 1)
    wanted = (intercept + slope * 32) * right[0]
    np.testing.assert_allclose(METHODS["relex"].predict(Trajectory.of(updates), 3).ravel(), wanted, atol=1e-12)


def test_alpha_moves_along_the_last_right_direction_whatever_the_signs_of_the_others():
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS], noise=0.02)
    predicted = METHODS["alpha"].predict(Trajectory.of(updates, accuracies), 1)
    _, values, right = np.linalg.svd(updates[8])
    assert np.linalg.matrix_rank(predicted, tol=1e-10) == 1
    assert abs(np.linalg.svd(predicted)[2][0] @ right[0]) == pytest.approx(1)
    assert np.linalg.norm(predicted) > 1.5 * values[0]
    wide = {step: update.T for step, update in updates.items()}
    assert METHODS["alpha"].predict(Trajectory.of(wide, accuracies), 1).shape == (5, 6)


def test_alpha_goes_where_accuracy_rises_not_where_training_goes():
    updates, accuracies, direction = path_of([0.1 * step for step in STEPS])
    falling = {step: 0.6 - accuracy for step, accuracy in accuracies.items()}  # the base is best
    predicted = METHODS["alpha"].predict(Trajectory.of(updates, falling), 1)
    np.testing.assert_allclose(predicted, -0.8 * direction, atol=1e-12)


def test_alpha_leaves_alone_what_accuracy_says_nothing_of():
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS])
    path = Trajectory.of(updates, dict.fromkeys(accuracies, 0.5))
    assert (METHODS["alpha"].predict(path, 4) == updates[8]).all()
    vectors, accuracies, _ = path_of([0.1 * step for step in STEPS], shape=(5,))
    assert (METHODS["alpha"].predict(Trajectory.of(vectors, accuracies), 4) == vectors[8]).all()


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_states_and_zero_updates_change_nothing(method):
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS], noise=0.1)
    backwards = dict(reversed(updates.items())), dict(reversed(accuracies.items()))
    predict = METHODS[method].predict
    assert (predict(Trajectory.of(updates, accuracies), 2) == predict(Trajectory.of(*backwards), 2)).all()
    nothing = predict(Trajectory.of({step: np.zeros((6, 5)) for step in STEPS}, accuracies), 2)
    assert nothing.shape == (6, 5)
    assert not nothing.any()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_makes_do_with_the_states_that_it_asks_for(method):
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS], noise=0.1)
    least = STEPS[: METHODS[method].states]
    path = Trajectory.of({step: updates[step] for step in least}, {step: accuracies[step] for step in (0, *least)})
    assert np.isfinite(METHODS[method].predict(path, 2)).all()


def test_what_each_method_asks_for():
    asked = {name: (method.states, method.accuracies) for name, method in METHODS.items()}
    assert asked == {"expo": (1, False), "relex": (2, False), "relex_log": (2, False), "alpha": (2, True)}
    updates = {1: np.zeros((2, 2), np.float32), 2: np.ones((2, 2), np.float32)}
    whole = Trajectory.of(updates, {0: 0, 1: 1, 2: 1})  # counts of one problem: accuracies that are integers
    assert whole.accuracies.dtype == whole.updates.dtype == np.float64


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("method", METHODS)
def test_the_unit_of_the_weights_changes_nothing(method, scale):
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS], noise=0.05)
    scaled = {step: scale * update for step, update in updates.items()}
    predict = METHODS[method].predict
    wanted = scale * predict(Trajectory.of(updates, accuracies), 2)
    np.testing.assert_allclose(predict(Trajectory.of(scaled, accuracies), 2), wanted, rtol=1e-6)


def test_a_path_that_begins_late_is_gone_along():
    update = np.outer(U, V)
    late = Trajectory.of({1: np.zeros((6, 5)), 2: update})
    np.testing.assert_allclose(METHODS["relex"].predict(late, 3), 7 * update)  # 0 at step 1, 1 at 2: 7 at step 8


def test_alpha_looks_at_the_last_update_alone_for_whether_a_matrix_moves():
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS])
    accuracies = {step: 0.3 + 0.01 * step for step in accuracies}
    returned = METHODS["alpha"].predict(Trajectory.of({**updates, 8: np.zeros((6, 5))}, accuracies), 1)
    assert not returned.any()
    for still in (2, 4):
        path = Trajectory.of({**updates, still: np.zeros((6, 5))}, accuracies)
        assert not np.allclose(METHODS["alpha"].predict(path, 1), updates[8])


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4)])
def test_the_first_triplet_is_that_of_the_singular_value_decomposition(shape):
    matrix = np.random.default_rng(1).normal(size=shape)
    scaled, right = predictors._first_triplet(matrix)
    left, values, rights = np.linalg.svd(matrix)
    np.testing.assert_allclose(np.outer(scaled, right), values[0] * np.outer(left[:, 0], rights[0]), atol=1e-12)
    assert np.linalg.norm(scaled) == pytest.approx(values[0])
    scaled, right = predictors._first_triplet(np.zeros(shape))
    assert not scaled.any()
    assert np.isfinite(right).all()


def test_the_sign_of_a_triplet_changes_nothing(monkeypatch):
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS], noise=0.02)
    path, triplet = Trajectory.of(updates, accuracies), predictors._first_triplet
    wanted = METHODS["alpha"].predict(path, 1)
    flipped = [(s * u, s * v) for s, (u, v) in zip([1, -1, -1, 1], map(triplet, path.updates), strict=True)]
    monkeypatch.setattr(predictors, "_first_triplet", lambda _: flipped.pop(0))
    np.testing.assert_allclose(METHODS["alpha"].predict(path, 1), wanted)


def test_the_regression_is_read_off_where_it_gives_the_value():
    line = np.arange(4.0)[:, None] * [1.0, 2.0]
    np.testing.assert_allclose(predictors._inverse_regression(line, np.arange(4.0), 5.0), [5, 10])
    np.testing.assert_allclose(predictors._inverse_regression(line, 3 * np.arange(4.0), 5.0), [5 / 3, 10 / 3])


def test_points_that_values_do_not_depend_on_stay_where_they_are():
    points, values = np.array([[1.0, 2], [-1, -2], [-1, -2], [1, 2]]), np.array([1.0, 1, -1, -1])
    assert predictors._inverse_regression(points, values, 3.0).tolist() == [1, 2]
