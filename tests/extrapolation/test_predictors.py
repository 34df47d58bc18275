"""Offline extrapolation: on paths that each method's assumption describes, it is exact."""

import numpy as np
import pytest

from effopd.common.registry import BUILT_IN, load
from effopd.extrapolation.predictors import Trajectory

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
    predicted = load("predictors", method).predict(Trajectory.of(updates, accuracies), amount)
    np.testing.assert_allclose(predicted, 0.8 * (1 + amount) * direction, atol=1e-12)


def test_a_logarithmic_path_is_predicted_exactly_by_the_regression_on_the_logarithm():
    updates, _, direction = path_of([0.2 + 0.1 * np.log(step) for step in STEPS])
    predicted = load("predictors", "relex_log").predict(Trajectory.of(updates), 3)
    np.testing.assert_allclose(predicted, (0.2 + 0.1 * np.log(32)) * direction, atol=1e-12)
    linear = load("predictors", "relex").predict(Trajectory.of(updates), 3)
    assert np.linalg.norm(linear) > 1.2 * np.linalg.norm(predicted)


def test_relex_is_the_rank_one_approximation_of_the_whole_path():
    """Against the singular value decomposition of all updates, and numpy's own polynomial fit."""
    updates, _, _ = path_of([0.1 * step for step in STEPS], noise=0.05)
    rows = np.stack([updates[step].ravel() for step in STEPS])
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    slope, intercept = np.polyfit(STEPS, left[:, 0] * values[0], 1)
    wanted = (intercept + slope * 32) * right[0]
    np.testing.assert_allclose(
        load("predictors", "relex").predict(Trajectory.of(updates), 3).ravel(), wanted, atol=1e-12
    )


def test_alpha_moves_along_the_last_right_direction_whatever_the_signs_of_the_others():
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS], noise=0.02)
    predicted = load("predictors", "alpha").predict(Trajectory.of(updates, accuracies), 1)
    _, values, right = np.linalg.svd(updates[8])
    assert np.linalg.matrix_rank(predicted, tol=1e-10) == 1
    assert abs(np.linalg.svd(predicted)[2][0] @ right[0]) == pytest.approx(1)
    assert np.linalg.norm(predicted) > 1.5 * values[0]
    wide = {step: update.T for step, update in updates.items()}
    assert load("predictors", "alpha").predict(Trajectory.of(wide, accuracies), 1).shape == (5, 6)


def test_alpha_goes_where_accuracy_rises_not_where_training_goes():
    updates, accuracies, direction = path_of([0.1 * step for step in STEPS])
    falling = {step: 0.6 - accuracy for step, accuracy in accuracies.items()}  # the base is best
    predicted = load("predictors", "alpha").predict(Trajectory.of(updates, falling), 1)
    np.testing.assert_allclose(predicted, -0.8 * direction, atol=1e-12)


def test_alpha_leaves_alone_what_accuracy_says_nothing_of():
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS])
    path = Trajectory.of(updates, dict.fromkeys(accuracies, 0.5))
    assert (load("predictors", "alpha").predict(path, 4) == updates[8]).all()
    vectors, accuracies, _ = path_of([0.1 * step for step in STEPS], shape=(5,))
    assert (load("predictors", "alpha").predict(Trajectory.of(vectors, accuracies), 4) == vectors[8]).all()


@pytest.mark.parametrize("method", BUILT_IN["predictors"])
def test_the_order_of_states_and_zero_updates_change_nothing(method):
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS], noise=0.1)
    backwards = dict(reversed(updates.items())), dict(reversed(accuracies.items()))
    predict = load("predictors", method).predict
    assert (predict(Trajectory.of(updates, accuracies), 2) == predict(Trajectory.of(*backwards), 2)).all()
    nothing = Trajectory.of({step: np.zeros((6, 5)) for step in STEPS}, accuracies)
    assert not predict(nothing, 2).any()


@pytest.mark.parametrize("method", BUILT_IN["predictors"])
def test_each_method_makes_do_with_the_states_that_it_asks_for(method):
    updates, accuracies, _ = path_of([0.1 * step for step in STEPS], noise=0.1)
    least = STEPS[: load("predictors", method).states]
    path = Trajectory.of({step: updates[step] for step in least}, {step: accuracies[step] for step in (0, *least)})
    assert np.isfinite(load("predictors", method).predict(path, 2)).all()
