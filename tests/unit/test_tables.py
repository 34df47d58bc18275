"""The comparison's arithmetic, on a table small enough to check by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from effopd.stages.make_tables import speedup, summary
from effopd.stages.write_report import caveats, findings
from effopd.statistics import bootstrap_interval, mean_interval, ratio_interval


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


def test_speedup_counts_the_first_step_that_reaches_what_the_baseline_reaches_last():
    result = speedup(ROWS, "plain", 0.95).set_index(["run", "seed"])
    assert result.loc[("plain", 0), "target_accuracy"] == 0.5
    jump = result.loc[("jump", 0)]
    assert (jump["first_step"], jump["first_tokens"], jump["first_seconds"]) == (1, 20, 2.0)
    assert (jump["step_ratio"], jump["tokens_ratio"], jump["seconds_ratio"]) == (8, 4, 4)
    never = result.loc[("jump", 1)]
    assert never["reached"] == 0
    assert math.isnan(never["first_step"])
    assert math.isnan(never["step_ratio"])
    mean = result.loc[("jump", "mean")]
    assert mean["reached"] == 1
    assert mean["step_ratio"] == pytest.approx(8)
    assert math.isnan(mean["step_ratio_low"])
    assert (result.loc["plain", "step_ratio"] == 1).all()


def test_the_starting_point_never_counts_as_reaching_the_target():
    assert speedup(ROWS, "plain", 0.95).set_index(["run", "seed"]).loc[("plain", 1), "first_step"] == 8


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
    mean, low, high = ratio_interval([2, 8], 0.95)
    assert mean == pytest.approx(4)
    assert low * high == pytest.approx(16)
    assert all(math.isnan(x) for x in mean_interval([], 0.95))


def test_the_report_claims_only_what_the_intervals_support():
    config = {"runs": {"plain": {}, "jump": {"label": "Jump"}}, "seeds": [0, 1], "evaluation": {"baseline": "plain"}}
    tables = {"speedup": speedup(ROWS, "plain", 0.95), "summary": summary(ROWS, 0.95)}
    plain, jump = findings(config, tables)
    assert plain.startswith("plain is the baseline.")
    assert (
        "Jump reaches the accuracy at which plain ends in 1 of 2 seeds: 8.0 times better (one seed, so no interval)"
        in jump
    )
    always = ROWS.assign(accuracy=ROWS["accuracy"].where(ROWS["run"] == "plain", 0.9))
    tables = {"speedup": speedup(always, "plain", 0.95), "summary": summary(always, 0.95)}
    assert "8.0 times better (the same in every seed) in steps" in findings(config, tables)[1]
    noisy = tables["speedup"].copy()
    noisy.loc[(noisy["run"] == "jump") & (noisy["seed"] == "mean"), ["step_ratio_low", "step_ratio_high"]] = [0.5, 30]
    assert (
        "not shown to differ (ratio 8.0, interval 0.5 to 30.0) in steps"
        in findings(config, {**tables, "speedup": noisy})[1]
    )


def test_the_report_warns_where_the_baseline_went_nowhere():
    config = {"runs": {"plain": {}, "jump": {}}, "evaluation": {"baseline": "plain"}}
    rows = ROWS.assign(completions=1000)
    assert caveats(config, rows) == []
    still = rows.assign(accuracy=0.31)
    assert (
        "plain does not end clearly above where it started (31.0% then, 31.0% at the end)" in caveats(config, still)[0]
    )


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
