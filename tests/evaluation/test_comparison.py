"""How runs compare, on outcomes small enough to check by hand, and against brute force."""

import math

import numpy as np
import pandas as pd
import pytest

from effopd.evaluation.comparison import (
    REVERSE_KL,
    Curve,
    Outcome,
    _weights,
    comparison,
    comparison_columns,
    curves,
    speedup,
)  # fmt: skip
from effopd.evaluation.statistics import crossed_interval, mean_interval, problem_shares

PROBLEMS = 20
COLUMNS = ["run", "seed", "step", "accuracy", "generated_tokens"]
ROWS = [
    ("plain", 0, 0, 0.3, 0),
    ("plain", 0, 1, 0.3, 10),
    ("plain", 0, 8, 0.5, 80),
    ("plain", 1, 0, 0.6, 0),
    ("plain", 1, 1, 0.4, 10),
    ("plain", 1, 8, 0.6, 80),
    ("jump", 0, 0, 0.3, 0),
    ("jump", 0, 1, 0.5, 20),
    ("jump", 0, 8, 0.9, 100),
    ("jump", 1, 0, 0.6, 0),
    ("jump", 1, 1, 0.4, 20),
    ("jump", 1, 8, 0.5, 100),
]
GROUPS = {"plain": "main", "jump": "main", "other": "more"}


def evaluation(rows=ROWS):
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(
        scored_tokens=table["generated_tokens"], flops=5.0 * table["generated_tokens"], seconds=table["step"] / 2
    )


def outcome(rewards):
    """Of these rewards, with a reverse KL of 1 - reward a token: curves of either kind have the same steps to a target."""
    tokens = np.arange(len(rewards)) % 3 + 1
    return Outcome(rewards, (1 - rewards) * tokens, tokens)


def outcomes(table, problems=PROBLEMS):
    """Outcomes with these accuracies: the first problems are the solved ones."""
    places = table[table["step"] > 0].itertuples()
    return {
        (row.run, row.seed, row.step): outcome((np.arange(problems) < round(row.accuracy * problems)).astype(float))
        for row in places
    }


def found(rows=ROWS):
    table = evaluation(rows)
    return curves(table, outcomes(table))


def table_of(table, of, pairs, groups=None):
    """`comparison` of the runs of an evaluation."""
    return comparison(curves(table, of), curves(table, of, REVERSE_KL), groups or GROUPS, pairs, 0.95)


def against(curves_of, *references):
    """All runs with each of these, as they are configured where all are compared with them."""
    return [(run, reference) for reference in references for run in curves_of]


def compared(rows=ROWS, references=("plain",)):
    table = evaluation(rows)
    return table_of(table, outcomes(table), against(found(rows), *references)).set_index(["run", "reference"])


def with_accuracy(run, accuracy):
    """The same table where a run has this accuracy at every kept step."""
    return [(*row[:3], accuracy, *row[4:]) if row[0] == run and row[2] else row for row in ROWS]


def test_speedup_counts_the_first_step_that_reaches_what_the_reference_reaches_last():
    result = speedup(found(), [0, 1], against(found(), "plain")).set_index(["run", "seed"])
    assert result.loc[("plain", 0), "target_accuracy"] == 0.5
    jump = result.loc[("jump", 0)]
    assert (jump["first_step"], jump["first_generated_tokens"], jump["first_flops"]) == (1, 20, 100)
    assert (jump["step_ratio"], jump["generated_tokens_ratio"], jump["flops_ratio"]) == (8, 4, 4)
    assert (result.loc["plain", "step_ratio"] == 1).all()


def test_the_starting_point_never_counts_as_reaching_the_target():
    assert (
        speedup(found(), [0, 1], against(found(), "plain")).set_index(["run", "seed"]).loc[("plain", 1), "first_step"]
        == 8
    )


def test_a_seed_that_never_gets_there_bounds_the_ratio():
    never = speedup(found(), [0, 1], against(found(), "plain")).set_index(["run", "seed"]).loc[("jump", 1)]
    assert never["reached"] == 0
    assert math.isnan(never["first_step"])
    assert (never["step_ratio"], never["generated_tokens_ratio"]) == (1, 0.8)  # no more than 80 of its 100 tokens
    row = compared().loc[("jump", "plain")]
    assert (row["reached"], row["seeds"]) == (1, 2)
    assert row["step_ratio"] == pytest.approx(math.sqrt(8 * 1))
    assert row["step_ratio_low"] == 0
    assert row["step_ratio_high"] > row["step_ratio"]


def test_each_reference_is_a_target_of_its_own():
    table = compared(references=("plain", "jump"))
    assert set(table.index) == {("jump", "plain"), ("plain", "jump")}
    assert table.loc[("plain", "jump"), "reached"] == 1  # 0.9 is out of reach, 0.5 is not
    back, forth = table.loc[("plain", "jump")], table.loc[("jump", "plain")]
    assert back["difference_at_equal_step"] == pytest.approx(-forth["difference_at_equal_step"])
    assert back["ahead_at_equal_step"] == pytest.approx(1 - forth["ahead_at_equal_step"])


def test_a_run_is_compared_with_those_that_it_is_paired_with_alone():
    rows = evaluation()
    table = table_of(rows, outcomes(rows), [("jump", "plain")])
    assert list(zip(table["run"], table["reference"], strict=True)) == [("jump", "plain")]
    assert list(speedup(found(), [0, 1], [("jump", "plain")])["run"]) == ["jump", "jump"]


def test_accuracy_at_equal_cost_is_interpolated_in_the_logarithm_of_the_cost():
    row = compared().loc[("jump", "plain")]
    weight = math.log(80 / 20) / math.log(100 / 20)  # jump when it has spent the 80 tokens that plain ends with
    expected = np.mean([0.5 + 0.4 * weight - 0.5, 0.4 + 0.1 * weight - 0.6])
    assert row["difference_at_equal_generated_tokens"] == pytest.approx(expected)
    assert row["difference_at_equal_flops"] == pytest.approx(expected)
    assert row["difference_at_equal_step"] == pytest.approx(0.15)
    assert row["accuracy"] - row["reference_accuracy"] == pytest.approx(0.15)


def test_the_area_counts_every_doubling_alike():
    row = compared().loc[("jump", "plain")]
    assert row["area"] == pytest.approx(np.mean([0.7, 0.45]))
    flat = compared(with_accuracy("jump", 0.75)).loc[("jump", "plain")]
    assert flat["area"] == pytest.approx(0.75)
    steps = [1, 2, 4, 8, 16]
    accuracy = np.array([[0.1, 0.2, 0.5, 0.4, 0.8]])
    curve = Curve(steps, {}, accuracy, np.repeat(accuracy[None], 3, axis=0))
    by_hand = sum((a + b) / 2 for a, b in zip(accuracy[0], accuracy[0, 1:], strict=False)) / 4
    assert curve.area(steps)[0] == pytest.approx(by_hand)
    assert curve.area(steps)[1] == pytest.approx(np.full((3, 1), by_hand))
    assert np.isnan(curve.area([4])[0]).all()


def test_runs_of_different_length_are_compared_at_the_last_step_that_both_kept():
    short = [row for row in ROWS if not (row[0] == "jump" and row[2] == 8)]
    row = compared(short).loc[("jump", "plain")]
    assert row["step"] == 1
    assert row["difference_at_equal_step"] == pytest.approx(0.1)
    assert math.isnan(row["area"])
    one_state = [row for row in ROWS if row[0] == "plain" or row[2] == 8]  # no step 0 and no step 1, as a prediction
    assert compared(one_state).loc[("jump", "plain"), "difference_at_equal_step"] == pytest.approx(0.15)


def test_where_one_begins_above_what_the_other_spends_nothing_is_compared():
    dear = [(*row[:4], row[4] * 100) if row[0] == "jump" else row for row in ROWS]
    row = compared(dear).loc[("jump", "plain")]
    assert math.isnan(row["difference_at_equal_flops"])
    assert math.isnan(row["ahead_at_equal_flops"])
    assert row["difference_at_equal_step"] == pytest.approx(0.15)


def test_who_is_ahead_is_paired_by_problem():
    rng = np.random.default_rng(0)
    rows = [row for row in ROWS if row[2] == 8]
    table = evaluation(rows)
    base = rng.random(PROBLEMS)
    shared = {
        (row.run, row.seed, row.step): outcome(base + (0.01 if row.run == "jump" else 0)) for row in table.itertuples()
    }
    row = table_of(table, shared, [("jump", "plain")]).iloc[0]
    assert row["ahead_at_equal_step"] == 1
    assert row["difference_at_equal_step_low"] == pytest.approx(0.01)
    row = table_of(table, dict.fromkeys(shared, outcome(base)), [("jump", "plain")]).iloc[0]
    assert (row["ahead_at_equal_step"], row["difference_at_equal_step_low"]) == (0.5, 0)


def test_resampled_ratios_are_those_of_resampled_accuracies():
    rng = np.random.default_rng(1)
    table = evaluation(
        [(run, s, step, 0.0, step * 10) for run in ("plain", "jump") for s in (0, 1, 2) for step in (1, 2, 4)]
    )
    drawn = {
        (r.run, r.seed, r.step): (rng.random(PROBLEMS) < 0.3 + 0.1 * r.step).astype(float) for r in table.itertuples()
    }
    row = table_of(table, {state: outcome(rewards) for state, rewards in drawn.items()}, [("jump", "plain")]).iloc[0]

    def log_ratio(seed, share):
        def first(run, target):
            return next((k for k in (1, 2, 4) if share @ drawn[run, seed, k] >= target - 1e-9), 4)

        target = share @ drawn["plain", seed, 4]
        return math.log(first("plain", target) / first("jump", target))

    everywhere = np.full(PROBLEMS, 1 / PROBLEMS)
    values = np.array([log_ratio(seed, everywhere) for seed in (0, 1, 2)])
    resampled = np.array([[log_ratio(seed, share) for seed in (0, 1, 2)] for share in problem_shares(PROBLEMS)])
    mean, _, high = crossed_interval(values, resampled, 0.95)
    assert row["step_ratio"] == pytest.approx(math.exp(mean))
    assert row["step_ratio_high"] == pytest.approx(math.exp(high))


def test_the_reverse_kl_is_a_target_of_its_own():
    table = evaluation()
    of = outcomes(table)
    steps = {("plain", 1): 0.5, ("plain", 8): 0.2, ("jump", 1): 0.3, ("jump", 8): 0.1}
    tokens = np.arange(PROBLEMS) + 1.0
    of = {
        state: Outcome(of[state].rewards, steps[state[0], state[2]] * tokens, tokens) for state in of
    }  # whatever the accuracy
    row = table_of(table, of, [("jump", "plain")]).iloc[0]
    assert (row["reverse_kl"], row["reference_reverse_kl"]) == (pytest.approx(0.1), pytest.approx(0.2))
    assert (row["reverse_kl_reached"], row["reverse_kl_step_ratio"]) == (2, pytest.approx(1))
    assert row["reverse_kl_generated_tokens_ratio"] == pytest.approx(0.8)
    assert row["reached"] == 1
    back = table_of(table, of, [("plain", "jump")]).iloc[0]
    assert (back["reverse_kl_reached"], back["reverse_kl_step_ratio_low"]) == (0, 0)


def test_weights_that_overflowed_reach_no_reverse_kl():
    table = evaluation()
    of = outcomes(table)
    for state in of:
        if state[0] == "jump":
            of[state].reverse_kl[0] = math.nan
    row = table_of(table, of, [("jump", "plain")]).iloc[0]
    assert row["reverse_kl_reached"] == 0
    assert math.isinf(row["reverse_kl"])
    assert row["reached"] == 1


def test_one_seed_has_ratios_and_no_interval():
    row = compared([row for row in ROWS if row[1] == 0]).loc[("jump", "plain")]
    assert row["step_ratio"] == pytest.approx(8)
    assert math.isnan(row["step_ratio_low"])
    assert math.isnan(row["difference_at_equal_step_high"])


def test_what_costs_nothing_has_no_ratio():
    table = evaluation()
    table.loc[table["run"] == "jump", "scored_tokens"] = 0
    row = table_of(table, outcomes(table), [("jump", "plain")]).iloc[0]
    assert math.isnan(row["scored_tokens_ratio"])
    assert math.isnan(row["difference_at_equal_scored_tokens"])
    assert row["step_ratio"] > 0


def test_a_run_alone_is_compared_with_nothing():
    table = compared([row for row in ROWS if row[0] == "plain"])
    assert len(table) == 0
    assert list(table.reset_index().columns.sort_values()) == sorted(comparison_columns())


def crossed_experiment(rng, seeds, of_seeds, of_problems, of_answers):
    """Differences [problems, seeds] of mean 0, where seeds, problems and single answers vary."""
    problems = 100
    return (
        rng.normal(0, of_seeds, (1, seeds))
        + rng.normal(0, of_problems, (problems, 1))
        + rng.normal(0, of_answers, (problems, seeds))
    )


@pytest.mark.parametrize("deviations", [(0.03, 0.02, 0.1), (0.03, 0.3, 0.3), (0.003, 0.3, 0.3)])
@pytest.mark.parametrize("seeds", [3, 5])
def test_crossed_intervals_cover_as_often_as_they_say(seeds, deviations):
    """Where seeds vary, where both do, and where problems do: other intervals fail in one of them."""
    rng, shares = np.random.default_rng(0), problem_shares(100)
    hits, over_seeds = 0, 0
    for _ in range(1000):
        drawn = crossed_experiment(rng, seeds, *deviations)
        _, low, high = crossed_interval(drawn.mean(axis=0), shares @ drawn, 0.95)
        hits += low <= 0 <= high
        _, low, high = mean_interval(drawn.mean(axis=0).tolist(), 0.95)
        over_seeds += low <= 0 <= high
    assert hits / 1000 >= 0.93
    if deviations[0] < 0.01:
        assert over_seeds / 1000 < 0.9, (
            "the problems are the same for all seeds: their spread over seeds does not show them"
        )


def test_crossed_intervals_are_those_of_the_two_way_layout():
    """Against the closed form of crossed random effects, whose mean squares the bootstrap estimates."""
    rng = np.random.default_rng(3)
    seeds, problems = 4, 400
    drawn = rng.normal(0, 0.1, (1, seeds)) + rng.normal(0, 0.5, (problems, 1)) + rng.normal(0, 1, (problems, seeds))
    grand, of_seeds, of_problems = drawn.mean(), drawn.mean(axis=0), drawn.mean(axis=1)
    rest = drawn - of_seeds - of_problems[:, None] + grand
    squares = (
        problems * of_seeds.var(ddof=1)
        + seeds * of_problems.var(ddof=1)
        - (rest**2).sum() / (seeds - 1) / (problems - 1)
    )
    variance = squares / seeds / problems
    mean, low, high = crossed_interval(of_seeds, problem_shares(problems) @ drawn, 0.95)
    assert mean == pytest.approx(grand)
    freedom = variance**2 / (
        (of_seeds.var(ddof=1) / seeds) ** 2 / (seeds - 1) + (of_problems.var(ddof=1) / problems) ** 2 / 998
    )
    from scipy.stats import t

    assert (high - low) / 2 == pytest.approx(t.ppf(0.975, freedom) * math.sqrt(variance), rel=0.05)


def test_a_run_that_is_looked_at_more_often_is_no_faster():
    """One path of accuracies, kept at all powers of two by `fine`, at three steps by `coarse`, at its end by `last`."""
    path = {1: 0.3, 2: 0.4, 4: 0.45, 8: 0.6, 16: 0.6, 32: 0.6}
    kept = {"fine": path, "coarse": (4, 16, 32), "last": (32,)}
    rows = [(run, seed, step, path[step], 10 * step) for run, s in kept.items() for seed in (0, 1) for step in s]
    curves_of = found(rows)
    places = evaluation(rows)
    table = table_of(places, outcomes(places), against(curves_of, *kept), dict.fromkeys(kept, "main"))
    assert len(table) == 6
    assert (table[[f"{m}_ratio{bound}" for m in ("step", "flops") for bound in ("", "_low", "_high")]] == 1).all(
        axis=None
    )
    assert (table["reached"] == 2).all()
    assert (speedup(curves_of, [0, 1], against(curves_of, *kept))["step_ratio"] == 1).all()
    assert curves_of["fine"].beside(curves_of["coarse"]).steps == [4, 16, 32]


def test_steps_beyond_the_others_last_count():
    rows = [("long", 0, step, step / 64, 10 * step) for step in (1, 2, 4, 8, 16, 32)]
    rows += [("short", 0, step, step / 8, 10 * step) for step in (2, 4)]
    curves_of = found(rows)
    assert curves_of["long"].beside(curves_of["short"]).steps == [2, 4, 8, 16, 32]
    result = speedup(curves_of, [0], [("short", "long")]).set_index("run").loc["short"]
    assert (result["first_step"], result["step_ratio"]) == (4, 8)


def test_tables_name_their_columns_and_keep_the_order_of_runs():
    assert list(found()) == ["plain", "jump"]
    spent = ["step", "generated_tokens", "scored_tokens", "flops", "seconds"]
    names = ["run", "reference", "seed", "target_accuracy", "reached"]
    names += [f"first_{measure}" for measure in spent] + [f"{measure}_ratio" for measure in spent]
    for pairs in ([], [("jump", "plain")]):
        result = speedup(found(), [0, 1], pairs)
        assert sorted(result.columns) == sorted(names)
        assert (result["reference"] == "plain").all()
    row = compared().loc[("jump", "plain")]
    assert row["group"] == "main"
    assert row["reference_area"] == pytest.approx(np.mean([0.4, 0.5]))
    assert row["area_difference"] == pytest.approx(row["area"] - row["reference_area"])
    assert row["area_difference_low"] <= row["area_difference"] <= row["area_difference_high"]
    assert {"group", "reference", "area", "reference_area", "area_difference"} <= set(comparison_columns())


def test_the_area_begins_where_the_steps_do():
    steps, accuracy = [2, 4, 8], np.array([[0.2, 0.5, 0.4]])
    whole, drawn = Curve(steps, {}, accuracy, np.repeat(accuracy[None], 3, axis=0)).area(steps)
    by_hand = ((0.2 + 0.5) / 2 + (0.5 + 0.4) / 2) / 2
    assert whole == pytest.approx(by_hand)
    assert drawn == pytest.approx(np.full((3, 1), by_hand))
    none = Curve(steps, {}, accuracy, np.repeat(accuracy[None], 3, axis=0)).area([4])
    assert [values.shape for values in none] == [(1,), (3, 1)]


def test_runs_without_a_common_step_are_not_compared_at_one():
    rows = [row for row in ROWS if row[:1] + row[2:3] in (("plain", 1), ("jump", 8))]
    row = compared(rows).loc[("jump", "plain")]
    assert all(math.isnan(row[name]) for name in ("step", "accuracy", "reference_accuracy", "difference_at_equal_step"))
    assert math.isnan(row["area"])


def test_equal_steps_are_the_last_that_both_kept():
    """And not what either has reached: nothing is interpolated between steps."""
    rows = [("plain", s, step, a, 10 * step) for s in (0, 1) for step, a in ((1, 0.2), (4, 0.4), (16, 0.6))]
    rows += [("jump", s, step, a, 10 * step) for s in (0, 1) for step, a in ((1, 0.2), (4, 0.5), (8, 0.9))]
    row = compared(rows).loc[("jump", "plain")]
    assert row["step"] == 4
    assert row["difference_at_equal_step"] == pytest.approx(0.1)


def test_nothing_is_extrapolated_beyond_what_was_spent():
    costs = np.array([10.0, 80.0])
    for budget in (10.0, 80.0):
        assert np.isfinite(_weights(costs, budget)).all()
    for budget in (9.0, 100.0, 161.0):
        assert np.isnan(_weights(costs, budget)).all()


def test_what_costs_nothing_leaves_the_other_ratios():
    table = evaluation()
    table.loc[table["run"] == "jump", "scored_tokens"] = 0
    row = table_of(table, outcomes(table), [("jump", "plain")]).iloc[0]
    for measure in ("step", "generated_tokens", "flops", "seconds"):
        assert row[f"{measure}_ratio"] > 0
        assert row[f"reverse_kl_{measure}_ratio"] > 0
    result = speedup(curves(table, outcomes(table)), [0, 1], [("jump", "plain")])
    assert result["scored_tokens_ratio"].isna().all()
