"""Intervals against closed forms, and what they are if there is too little to go by."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, t

from effopd.evaluation import statistics
from effopd.evaluation.statistics import (
    MEAN,
    RESAMPLES,
    bootstrap_interval,
    crossed_interval,
    interval_columns,
    mean_interval,
    problem_shares,
    with_means,
)


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9), st.sampled_from([0.5, 0.9, 0.95]))
def test_the_interval_of_a_mean_is_students(values, confidence):
    mean, low, high = mean_interval(values, confidence)
    by_hand = sum(values) / len(values)
    deviation = math.sqrt(sum((value - by_hand) ** 2 for value in values) / (len(values) - 1))
    half = t.ppf(0.5 + confidence / 2, len(values) - 1) * deviation / math.sqrt(len(values))
    assert (mean, low, high) == pytest.approx((by_hand, by_hand - half, by_hand + half), rel=1e-9, abs=1e-9)


def test_one_value_has_no_interval_and_none_has_no_mean():
    mean, *bounds = mean_interval([3.0], 0.95)
    assert mean == 3.0
    assert np.isnan(bounds).all()
    assert len(bounds) == 2
    assert np.isnan(mean_interval([], 0.95)).all()
    assert len(mean_interval([], 0.95)) == 3


def test_the_bootstrap_is_the_percentiles_of_resampled_ratios():
    """Against draws of its own: both are within the noise of resampling, also of a difference of two ratios."""
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, (2, 60)).astype(float)
    sums = rng.normal(1, 1, (2, 60)) * counts
    other = rng.normal(0, 1, 60), rng.integers(1, 9, 60).astype(float)
    rows = rng.integers(0, 60, (20_000, 60))
    for reference in (None, other):
        ratios = sums[:, rows].sum(-1) / counts[:, rows].sum(-1)
        if reference:
            ratios = ratios - reference[0][rows].sum(-1) / reference[1][rows].sum(-1)
        low, high = bootstrap_interval(sums, counts, 0.8, reference)
        wanted = np.quantile(ratios, [0.1, 0.9], axis=-1)
        width = (wanted[1] - wanted[0]).mean()
        np.testing.assert_allclose([low, high], wanted, atol=0.08 * width)


def test_the_bootstrap_of_one_row_of_counts_is_that_of_the_same_row_for_each():
    sums, counts = np.arange(12.0).reshape(3, 4), np.array([[1.0, 2.0, 1.0, 3.0]])
    found = bootstrap_interval(sums, counts, 0.9)
    wanted = bootstrap_interval(sums, np.repeat(counts, 3, axis=0), 0.9)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found, bootstrap_interval(sums, counts, 0.9))
    two = bootstrap_interval(sums[:, :2], counts[:, :2], 0.9)  # two units are enough, one is not
    assert np.isfinite(two).all()
    one = bootstrap_interval(sums[:, :1], counts[:, :1], 0.9)
    assert [len(bounds) for bounds in one] == [3, 3]
    assert np.isnan(one).all()


def test_the_bootstrap_draws_what_it_always_drew():
    values = np.random.default_rng(5).normal(size=30)
    wanted = bootstrap(
        (values,), np.mean, n_resamples=999, confidence_level=0.9, method="percentile", rng=np.random.default_rng(0)
    )
    found = bootstrap_interval(values[None], np.ones((1, 30)), 0.9)
    np.testing.assert_allclose([found[0][0], found[1][0]], list(wanted.confidence_interval))


def test_the_bootstrap_draws_as_often_as_it_says(monkeypatch):
    sums, counts = np.arange(20.0)[None] ** 2, np.ones((1, 20))
    many = bootstrap_interval(sums, counts, 0.9)
    monkeypatch.setattr(statistics, "RESAMPLES", 49)
    assert not np.array_equal(many, bootstrap_interval(sums, counts, 0.9))


@pytest.mark.parametrize("problems", [1, 2, 40])
def test_shares_are_those_of_draws_with_replacement(problems):
    shares = problem_shares(problems)
    assert shares.shape == (RESAMPLES, problems)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    drawn = shares * problems
    np.testing.assert_allclose(drawn, drawn.round())
    np.testing.assert_array_equal(shares, problem_shares(problems))
    written_out = np.random.default_rng(0).multinomial(problems, [1 / problems] * problems, 999) / problems
    np.testing.assert_array_equal(shares, written_out)
    assert (drawn.max() > 1) == (problems > 1)
    variance = drawn.var(axis=0).mean()  # of a multinomial count: 1 - 1 / N
    assert variance == pytest.approx(1 - 1 / problems, abs=0.1)


def test_a_crossed_interval_is_its_closed_form():
    values = np.array([0.4, 0.5, 0.7])
    resampled = np.array([[0.3, 0.4, 0.6], [0.5, 0.65, 0.8], [0.45, 0.5, 0.75], [0.25, 0.45, 0.6]])
    mean, low, high = crossed_interval(values, resampled, 0.9)
    of_seeds, of_problems = values.var(ddof=1) / 3, resampled.mean(1).var(ddof=1)
    both = (resampled.var(axis=0, ddof=1).mean() - of_problems) / 2
    variance = of_seeds + of_problems - both
    assert max(of_seeds, of_problems) < variance < of_seeds + of_problems, "the third part does not show"
    freedom = variance**2 / (of_seeds**2 / 2 + of_problems**2 / 3)
    half = t.ppf(0.95, freedom) * math.sqrt(variance)
    assert (mean, low, high) == pytest.approx((1.6 / 3, 1.6 / 3 - half, 1.6 / 3 + half))


@pytest.mark.parametrize(("of_seeds", "of_problems"), [(1.0, 0.01), (0.01, 1.0)])
def test_a_crossed_interval_is_no_narrower_than_either_part_alone(of_seeds, of_problems):
    """With the noise of answers so large that what is taken away is more than the smaller part."""
    values = of_seeds * np.array([-1.0, 0.0, 1.0])
    noise = 5 * np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.0, -1.0, 1.0]])
    resampled = noise + of_problems * np.array([[1.0], [-1.0], [1.0], [-1.0]])
    mean, low, high = crossed_interval(values, resampled, 0.9)
    seeds, problems = values.var(ddof=1) / 3, resampled.mean(1).var(ddof=1)
    variance = max(seeds, problems)
    freedom = variance**2 / (seeds**2 / 2 + problems**2 / 3)
    assert mean == pytest.approx(0)
    assert (high - low) / 2 == pytest.approx(t.ppf(0.95, freedom) * math.sqrt(variance))


def test_a_crossed_interval_of_too_little_is_none_and_of_what_never_varies_a_point():
    resampled = np.full((3, 2), 0.5)
    assert crossed_interval(np.array([0.5, 0.5]), resampled, 0.95) == (0.5, 0.5, 0.5)
    for values, drawn in (
        (np.array([0.4]), resampled[:, :1]),
        (np.array([0.4, math.inf]), resampled),
        (np.array([0.4, 0.5]), np.where(np.eye(3, 2) > 0, math.nan, resampled)),
    ):
        mean, *bounds = crossed_interval(values, drawn, 0.95)
        assert mean == values.mean()
        assert np.isnan(bounds).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2))
def test_rows_of_means_come_after_each_runs_own_and_hold_students_bounds(seeds, steps, values):
    names = ["accuracy", "length"][:values]
    rows = [
        {"run": run, "seed": seed, "step": step, "layer": None, **{n: 0.1 * seed**2 + step + i for i, n in enumerate(names)}}
        for run in ("b", "a")
        for seed in range(seeds)
        for step in range(steps)
    ]  # fmt: skip
    found = with_means(pd.DataFrame(rows), ["step", "layer"], names, 0.9)
    wanted = ["run", "seed", "step", "layer"] + [f"{n}{bound}" for n in names for bound in ("", "_low", "_high")]
    assert list(found.columns) == interval_columns(["step", "layer"], names) == wanted
    assert found["run"].tolist() == ["b"] * (seeds * steps + steps) + ["a"] * (seeds * steps + steps)
    for run in ("b", "a"):
        own, means = (found[(found["run"] == run) & ((found["seed"] == MEAN) == is_mean)] for is_mean in (False, True))
        assert own[["seed", "step"]].values.tolist() == [[r["seed"], r["step"]] for r in rows if r["run"] == run]
        assert own[[f"{n}_low" for n in names]].isna().all(axis=None)
        assert means["step"].tolist() == list(range(steps))
        for _, row in means.iterrows():
            for name in names:
                sample = [r[name] for r in rows if r["run"] == run and r["step"] == row["step"]]
                bounds = [row[f"{name}{bound}"] for bound in ("", "_low", "_high")]
                assert bounds == pytest.approx(list(mean_interval(sample, 0.9)), nan_ok=True)


def test_columns_that_a_table_lacks_are_left_out_where_there_is_no_mean():
    found = with_means(
        pd.DataFrame({"run": ["a"], "seed": [0], "step": [1], "x": [2.0], "other": [3]}), ["step"], ["x"], 0.9
    )
    assert list(found.columns) == ["run", "seed", "step", "x", "x_low", "x_high"]
    assert found["seed"].tolist() == [0, "mean"]
    assert found["x"].dtype == float


def test_means_keep_the_order_of_their_rows_and_are_numbered_on():
    rows = pd.DataFrame({"run": ["a"] * 4, "seed": [0, 0, 1, 1], "step": [2, 1, 2, 1], "x": [1.0, 2.0, 3.0, 4.0]})
    found = with_means(rows, ["step"], ["x"], 0.9)
    assert found["step"].tolist() == [2, 1, 2, 1, 2, 1]
    assert found["x"].tolist()[4:] == [2, 3]
    assert found.index.tolist() == list(range(6))
