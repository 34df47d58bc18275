"""The comparison's arithmetic, on a table small enough to check by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from effopd.evaluation.statistics import bootstrap_interval, mean_interval
from effopd.stages.make_tables import _of_record, _of_steps, summary


def table(rows):
    columns = [
        "run",
        "seed",
        "step",
        "accuracy",
        "generated_tokens",
        "scored_tokens",
        "seconds",
        "gate_generated_tokens",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    frame["reverse_kl"] = 1 - frame["accuracy"]
    frame["trained_tokens"] = frame["generated_tokens"] - frame["gate_generated_tokens"]
    frame["flops"] = 10.0 * frame["generated_tokens"]
    return frame


ROWS = table(
    [
        ("plain", 0, 0, 0.3, 0, 0, 0.0, 0),
        ("plain", 0, 1, 0.3, 10, 10, 1.0, 0),
        ("plain", 0, 8, 0.5, 80, 80, 8.0, 0),
        ("plain", 1, 0, 0.6, 0, 0, 0.0, 0),
        ("plain", 1, 1, 0.4, 10, 10, 1.0, 0),
        ("plain", 1, 8, 0.6, 80, 80, 8.0, 0),
        ("jump", 0, 0, 0.3, 0, 0, 0.0, 0),
        ("jump", 0, 1, 0.5, 20, 10, 2.0, 10),
        ("jump", 0, 8, 0.9, 100, 80, 9.0, 20),
        ("jump", 1, 0, 0.6, 0, 0, 0.0, 0),
        ("jump", 1, 1, 0.4, 20, 10, 2.0, 10),
        ("jump", 1, 8, 0.5, 100, 80, 9.0, 20),
    ]
)


def test_summary_is_the_last_step_with_intervals_and_the_gates_share():
    jump = summary(ROWS, 0.95).set_index("run").loc["jump"]
    assert jump["accuracy"] == pytest.approx(0.7)
    assert jump["accuracy_low"] == pytest.approx(0.7 - 12.706 * 0.2, abs=1e-3)
    assert jump["gate_token_share"] == pytest.approx(0.2)
    assert jump["generated_tokens"] == 100


def test_intervals_cover_as_often_as_they_say():
    import numpy as np

    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        _, low, high = mean_interval(rng.normal(3, 2, size=3).tolist(), 0.9)
        hits += low <= 3 <= high
    assert hits / 2000 == pytest.approx(0.9, abs=0.02)
    assert all(math.isnan(x) for x in mean_interval([], 0.95))


def test_bootstrapped_differences_are_paired():
    noise = np.random.default_rng(0).normal(0, 10, 200)  # what all variants have in common
    sums = np.stack([noise, noise + 1, noise + np.random.default_rng(1).normal(0, 1, 200)])
    ones = np.ones((1, 200))
    low, high = bootstrap_interval(sums, ones, 0.95, (noise, ones[0]))
    assert (low[0], high[0]) == (0, 0)
    assert low[1] == pytest.approx(1)
    assert high[1] == pytest.approx(1)
    half = (high[2] - low[2]) / 2
    assert half == pytest.approx(1.96 / 200**0.5, rel=0.15)
    assert low[2] < sums[2].mean() - noise.mean() < high[2]
    again = bootstrap_interval(sums[2:], ones, 0.95, (noise, ones[0]))
    assert (again[0][0], again[1][0]) == pytest.approx((low[2], high[2]))  # whatever else is asked
    unpaired, _ = bootstrap_interval(sums, ones, 0.95)
    assert unpaired[0] == pytest.approx(noise.mean() - 1.96 * 10 / 200**0.5, abs=0.3)
    assert np.isnan(bootstrap_interval(sums[:, :1], ones[:, :1], 0.95)).all()


def test_bootstrapped_ratios_weigh_units_by_their_counts():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, 300).astype(float)
    low, high = bootstrap_interval((2 * counts)[None], counts, 0.9)
    assert (low[0], high[0]) == (2, 2)


def decision(marks, values=(0.0, 0.0, 0.1, None)):
    """A decision about 2, 4 and 6; `marks`: what it says of ties, None for one of an older version."""
    current, *trials = ({"coefficient": 2.0 * i, "value": value, "per_item": []} for i, value in enumerate(values))
    for trial, mark in zip(trials, marks or [], strict=bool(marks)):
        trial["tie"] = mark
    return {
        "metric": "accuracy", "coefficient": 2.0, "current": current, "update_norm": {"moving": 1.0},
        "trials": [{**trial, "accepted": trial["coefficient"] == 2} for trial in trials],
    }  # fmt: skip


@pytest.mark.parametrize("marks", [None, [True, False, False]])
def test_ties_are_told_of_decisions_with_marks_and_of_older_ones_by_their_values(marks):
    rows = list(_of_record(decision(marks)))
    assert [(row["coefficient"], row["tie"], row["selected"]) for row in rows] == [
        (0.0, False, False), (2.0, True, True), (4.0, False, False), (6.0, False, False),
    ]  # fmt: skip
    unlike = _of_record(decision([False, False, False]))  # a gate whose values are alike where its scores are not
    assert [row["tie"] for row in unlike] == [False] * 4
    broken = _of_record(decision(None, (None, None)))
    assert [row["tie"] for row in broken] == [False, False]


def test_ties_of_every_step_are_told_by_what_its_trials_were_worth():
    metrics = pd.DataFrame(
        {
            "step": [1, 2], "trial_coefficients": [[0.0, 1.0, 2.0], [0.0, 1.0]], "coefficient": [2.0, 0.0],
            "trial_values": [[0.5, 0.4, 0.5], [math.nan, math.nan]], "accepted_coefficients": [[2.0], []],
            "update_norm": [1.0, 1.0],
        }
    )  # fmt: skip
    assert [row["tie"] for row in _of_steps(metrics)] == [False, False, True, False, False]
