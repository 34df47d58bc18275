"""What the report says of a comparison: never more than the intervals support."""

import math

import pandas as pd
import pytest

from effopd.evaluation.comparison import MEASURES, REVERSE_KL, comparison_columns
from effopd.report.findings import (
    FASTER,
    NEVER,
    OPEN,
    PARTLY,
    SLOWER,
    caveats,
    chance_note,
    comparison_section,
    cost_rows,
    first_step_rows,
    overview,
    ratio_cell,
    sentences,
    tie_findings,
    verdict,
)

CONFIG = {
    "runs": {"plain": {"label": "Plain"}, "jump": {"label": "Jump"}, "tuned": {}},
    "seeds": [0, 1, 2],
    "evaluation": {"baseline": "plain", "reference": "tuned", "confidence": 0.95},
}
SUMMARY = pd.DataFrame(
    {"run": run, "steps": 64, "accuracy": a, "accuracy_low": a - 0.01, "accuracy_high": a + 0.01}
    for run, a in (("plain", 0.44), ("jump", 0.6), ("tuned", 0.7))
)

NO_DECISIONS = pd.DataFrame(columns=["run", "selected", "tie"], dtype=object)  # as of a table without rows


def row(
    run="jump", reference="plain", ratio=(8, 7, 9), reached=3, difference=(0.05, 0.02, 0.08), group="main",
    kl_ratio=(4, 3, 5), kl_reached=3,
):  # fmt: skip
    """A row of comparison.csv, with the same ratio for every measure and the same difference at every equal cost."""
    cells = {"run": run, "group": group, "reference": reference, "seeds": 3, "step": 64, "reached": reached}
    cells |= {"accuracy": 0.6, "reference_accuracy": 0.5, "area": 0.5, "reference_area": 0.45}
    cells |= {"reverse_kl": 0.1, "reference_reverse_kl": 0.2, "reverse_kl_reached": kl_reached}
    for name, values in [
        *((f"{m}_ratio", ratio) for m in MEASURES), *((f"reverse_kl_{m}_ratio", kl_ratio) for m in MEASURES),
        *((f"difference_at_equal_{m}", difference) for m in MEASURES), ("area_difference", difference),
    ]:  # fmt: skip
        cells |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    cells |= {f"ahead_at_equal_{m}": 0.99 for m in MEASURES}
    return {name: cells[name] for name in comparison_columns()}


def said(**cells):
    (text,) = sentences(CONFIG, pd.DataFrame([row(**cells)]), SUMMARY, "main")
    return text


def test_faster_and_slower_are_said_only_where_the_interval_excludes_one():
    assert "faster in steps (8.0, 7.0 to 9.0), generated tokens (8.0, 7.0 to 9.0)" in said()
    assert "slower in steps (0.25, 0.2 to 0.3)" in said(ratio=(0.25, 0.2, 0.3))
    open_ = said(ratio=(8, 0.9, 70))
    assert "not shown to differ in steps (8.0, 0.9 to 70.0)" in open_
    assert "faster" not in open_
    assert "slower" not in open_
    assert "faster in steps (16.0, the same throughout)" in said(ratio=(16, 16, 16))
    assert "not shown to differ in steps (1.0, the same throughout)" in said(ratio=(1, 1, 1))


def test_seeds_that_never_reach_the_target_are_counted_and_bound_the_ratio():
    some = said(ratio=(3, 0, 7), reached=2)
    assert "its last accuracy is reached in 2 of 3 seeds" in some
    assert "not shown to differ in steps (at most 3.0, interval up to 7.0)" in some
    assert "faster" not in some
    assert "slower in steps (at most 0.3, interval up to 0.7)" in said(ratio=(0.3, 0, 0.7), reached=1)
    none = said(ratio=(1, 0, 1), reached=0)
    assert "its last accuracy is not reached in any of 3 seeds;" in none
    assert "faster" not in none


def test_accuracy_at_equal_cost_is_higher_or_lower_only_where_the_interval_says_so():
    assert "at equal FLOPs accuracy is higher by 5.0 points (+5.0, +2.0 to +8.0)." in said()
    assert "at equal FLOPs accuracy is lower by 5.0 points (-5.0, -8.0 to -2.0)." in said(
        difference=(-0.05, -0.08, -0.02)
    )
    assert "accuracy is not shown to differ (+5.0 points, -1.0 to +11.0)" in said(difference=(0.05, -0.01, 0.11))
    assert "they cannot be compared" in said(difference=(math.nan,) * 3)


def test_of_one_seed_nothing_is_claimed():
    nothing = math.nan
    table = pd.DataFrame(
        [{**row(ratio=(8, nothing, nothing), reached=1, difference=(0.05, nothing, nothing)), "seeds": 1}]
    )
    (text,) = sentences(CONFIG, table, SUMMARY, "main")
    assert "at ratios of 8 in steps" in text
    assert "one seed has no interval, so nothing is claimed" in text
    assert not any(word in text for word in ("faster", "slower", "higher", "lower"))
    assert verdict(table.iloc[0], "step") == OPEN


def test_both_references_are_told():
    table = pd.DataFrame([row(), row(reference="tuned", ratio=(0.5, 0.4, 0.6))])
    (text,) = sentences(CONFIG, table, SUMMARY, "main")
    assert text.startswith(
        "Jump ends at 60.0 % (59.0 to 61.0) accuracy after 64 steps. Against Plain: its last accuracy"
    )
    assert "Against tuned: its last accuracy is reached in 3 of 3 seeds, slower in steps (0.5, 0.4 to 0.6)" in text


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({}, FASTER),
        ({"ratio": (0.5, 0.4, 0.6)}, SLOWER),
        ({"ratio": (1.5, 0.9, 2.1)}, OPEN),
        ({"ratio": (5, 0, 9), "reached": 1}, PARTLY),
        ({"ratio": (0.5, 0, 0.9), "reached": 1}, SLOWER),
        ({"ratio": (1, 0, 1), "reached": 0}, NEVER),
    ],
)
def test_the_overview_puts_each_run_where_its_interval_does(cells, expected):
    table = pd.DataFrame([row(**cells)])
    assert verdict(table.iloc[0], "flops") == expected
    rows = overview(CONFIG, table, "plain")
    assert [one["cost in"] for one in rows] == ["steps", "generated tokens", "FLOPs", "seconds"]
    assert all(set(one) == {"cost in", expected} and one[expected].startswith("Jump") for one in rows)


def test_the_overview_begins_with_the_largest_ratios():
    table = pd.DataFrame([row(ratio=(4, 2, 8)), row(run="tuned", ratio=(8, 4, 16))])
    assert overview(CONFIG, table, "plain")[0][FASTER] == "tuned (8.0); Jump (4.0)"


def test_the_reverse_kl_is_a_target_of_its_own():
    table = pd.DataFrame([row(ratio=(1, 0, 1), reached=0, kl_ratio=(3, 0, 7), kl_reached=2)])
    assert verdict(table.iloc[0], "step") == NEVER
    assert verdict(table.iloc[0], "step", REVERSE_KL) == PARTLY
    assert overview(CONFIG, table, "plain", REVERSE_KL)[0][PARTLY] == "Jump (at most 3.0)"
    (cells,) = cost_rows(CONFIG, table, "plain", "main")
    assert cells["ratio in steps to its reverse KL"] == "≤ 3.0 (0 to 7.0)"
    assert cells["ratio in steps"] == "≤ 1.0 (0 to 1.0)"


def test_tables_are_by_group_and_reference():
    table = pd.DataFrame([row(), row("tuned", group="rates"), row(reference="tuned"), row("plain", "tuned")])
    assert [one["run"] for one in cost_rows(CONFIG, table, "plain", "main")] == ["Jump"]
    assert [one["run"] for one in cost_rows(CONFIG, table, "plain", "rates")] == ["tuned"]
    (cells,) = cost_rows(CONFIG, table, "plain", "main")
    assert cells["seeds there"] == "3 of 3"
    assert cells["ratio in FLOPs"] == "8.0 (7.0 to 9.0)"
    (bounded,) = cost_rows(CONFIG, pd.DataFrame([row(ratio=(3, 0, 7), reached=2)]), "plain", "main")
    assert (bounded["seeds there"], bounded["ratio in steps"]) == ("2 of 3", "≤ 3.0 (0 to 7.0)")
    assert cells["points at equal FLOPs"] == "+5.0 (+2.0 to +8.0)"
    assert cells["likely ahead there"] == "99%"
    assert ratio_cell(pd.Series(row(ratio=(250.4, 120, 500))), "step") == "250, 120 to 500"


def test_decisions_that_were_ties_are_counted_for_each_run():
    rows = [("plain", 0, True, False), ("plain", 2, False, True)]  # a tie that was not accepted
    rows += [("jump", 10, True, True), ("jump", 4, True, False), ("jump", 2, False, True), ("jump", 6, True, True)]
    rows += [("tuned", 2, True, True)]
    table = pd.DataFrame(rows, columns=["run", "coefficient", "selected", "tie"])
    assert tie_findings(CONFIG, table) == [
        "2 of 3 decisions of Jump accepted a tie: the gate saw no difference from the weights as they were.",
        "1 of 1 decision of tuned accepted a tie: the gate saw no difference from the weights as they were.",
    ]


def test_a_reference_of_one_run_has_a_table_in_its_group_and_is_in_no_overview():
    pairs = [("plain", "plain"), ("jump", "plain"), ("jump", "other")]
    speedup = pd.DataFrame([{"run": run, "reference": of, "seed": 0, "first_step": 8} for run, of in pairs])
    evaluation = pd.DataFrame({"run": "plain", "step": [0, 64], "accuracy": [0.3, 0.5], "completions": 1000})
    table = pd.DataFrame([row(), row(reference="other")])
    tables = {"comparison": table, "speedup": speedup, "evaluation": evaluation, "summary": SUMMARY}
    tables["extrapolation"] = NO_DECISIONS
    section = comparison_section({**CONFIG, "runs": {**CONFIG["runs"], "other": {"label": "Other"}}}, tables)
    assert [(part["reference"], part["target"]) for part in section["overview"]] == [
        ("Plain", "accuracy"),
        ("Plain", "reverse KL"),
    ]
    assert [part["reference"] for part in section["first_steps"]] == ["Plain"]
    (group,) = section["groups"]
    assert [part["reference"] for part in group["tables"]] == ["Plain", "Other"]
    assert "Against Other: its last accuracy is reached" in group["sentences"][0]


def test_the_section_needs_no_second_run_and_no_reference():
    speedup = pd.DataFrame({"run": "plain", "reference": "plain", "seed": [0, 1], "first_step": [8, math.nan]})
    evaluation = pd.DataFrame({"run": "plain", "step": [0, 64], "accuracy": [0.3, 0.5], "completions": 1000})
    alone = pd.DataFrame(columns=comparison_columns())
    tables = {"comparison": alone, "speedup": speedup, "evaluation": evaluation, "summary": SUMMARY}
    tables["extrapolation"] = NO_DECISIONS
    section = comparison_section(CONFIG, tables)
    assert section["ties"] == []
    assert section["groups"] == []
    assert section["chance"] == ""
    assert section["starts"] == ["Plain ends at 44.0 % (43.0 to 45.0) accuracy after 64 steps."]
    (steps,) = first_step_rows(CONFIG, speedup, "plain")
    assert steps["first step there, by seed"] == "8, never"


def test_how_many_intervals_mislead_by_chance_is_said():
    assert "of 40 comparisons of runs that did not differ, about 2.0 would" in chance_note(
        pd.DataFrame([row()] * 40), 0.95
    )


def test_the_report_warns_where_the_baseline_went_nowhere():
    rows = pd.DataFrame({"run": "plain", "step": [0, 64], "accuracy": [0.3, 0.5], "completions": 1000})
    assert caveats(CONFIG, rows) == []
    still = rows.assign(accuracy=0.31)
    assert (
        "Plain does not end clearly above where it started (31.0% then, 31.0% at the end)" in caveats(CONFIG, still)[0]
    )
