"""What the report says of the comparison: sentences and tables, from those in results/tables/.

A run is called faster, slower, better or worse only if an interval over seeds and problems says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from effopd.evaluation.comparison import ACCURACY, MEASURES, REVERSE_KL
from effopd.report.labels import label_of, with_interval

NAMES = dict(zip(MEASURES, ("steps", "generated tokens", "scored tokens", "FLOPs", "seconds"), strict=True))
SHOWN = ("step", "generated_tokens", "flops", "seconds")  # in the overview: scored tokens hardly say more
COST = "flops"  # the cost at which accuracies are compared: it counts all work and is the same on every machine
FASTER, OPEN, SLOWER, PARTLY, NEVER = (
    "faster",
    "not shown to differ",
    "slower",
    "not reached in every seed, and not shown to be slower",
    "never reached",
)
Rows = list[dict[str, str]]


def verdict(row: pd.Series, measure: str, target: str = ACCURACY) -> str:
    """What the interval of a run's ratio supports; OPEN if there is none, as of one seed."""
    low, high = (row[f"{target}{measure}_ratio{bound}"] for bound in ("_low", "_high"))
    reached = row[f"{target}reached"]
    if reached == 0:
        return NEVER
    if low > 1:
        return FASTER
    if high < 1:
        return SLOWER
    return OPEN if reached == row["seeds"] else PARTLY


def overview(config: dict[str, Any], comparison: pd.DataFrame, reference: str, target: str = ACCURACY) -> Rows:
    """A row for each measure of cost: which runs reach the reference's last accuracy, or reverse KL, faster.

    The largest ratios come first, in each cell.
    """
    rows = comparison[comparison["reference"] == reference]
    found: Rows = []
    for measure in SHOWN:
        named: dict[str, list[str]] = {kind: [] for kind in (FASTER, OPEN, SLOWER, PARTLY, NEVER)}
        for _, row in rows.sort_values(f"{target}{measure}_ratio", ascending=False, kind="stable").iterrows():
            kind = verdict(row, measure, target)
            ratio = "" if kind == NEVER else f" ({ratio_cell(row, measure, target, interval=False)})"
            named[kind].append(label_of(config, row["run"]) + ratio)
        found.append({"cost in": NAMES[measure]} | {kind: "; ".join(runs) for kind, runs in named.items()})
    used = [kind for kind in found[0] if any(row[kind] for row in found)]
    return [{kind: row[kind] for kind in used} for row in found]


def groups_of(comparison: pd.DataFrame) -> list[str]:
    """The groups of the runs, in the order in which they first come."""
    return list(dict.fromkeys(comparison["group"]))


def sentences(config: dict[str, Any], comparison: pd.DataFrame, summary: pd.DataFrame, group: str) -> list[str]:
    """A paragraph for each run of a group: what it is against each run that it is compared with."""
    ends = summary.set_index("run")
    of_group = comparison[comparison["group"] == group]
    found = []
    for run, rows in of_group.groupby("run", sort=False):
        text = _end(config, str(run), ends.loc[run])
        for _, row in rows.iterrows():
            text += f" Against {label_of(config, row['reference'])}: {_speed(row)}; {_at_equal_cost(row)}."
        found.append(text)
    return found


def _end(config: dict[str, Any], run: str, end: pd.Series) -> str:
    accuracy = with_interval(end, "accuracy", 100, 1, " %")
    return f"{label_of(config, run)} ends at {accuracy} accuracy after {end['steps']:.0f} steps."


def _speed(row: pd.Series) -> str:
    """Whether and at what cost a run is faster to the reference's last accuracy."""
    reached, seeds = int(row["reached"]), int(row["seeds"])
    if reached == 0:
        return f"its last accuracy is not reached in any of {_seeds(seeds)}"
    text = f"its last accuracy is reached in {reached} of {_seeds(seeds)}"
    if seeds == 1:
        ratios = ", ".join(f"{row[f'{m}_ratio']:.2g} in {name}" for m, name in NAMES.items() if _known(row, m))
        return f"{text}, at ratios of {ratios} (one seed has no interval, so nothing is claimed)"
    for kind, word in (
        (FASTER, "faster"),
        (OPEN, "not shown to differ"),
        (PARTLY, "not shown to differ"),
        (SLOWER, "slower"),
    ):
        named = [
            f"{name} ({ratio_cell(row, m)})" for m, name in NAMES.items() if _known(row, m) and verdict(row, m) == kind
        ]
        if named:
            text += f", {word} in {_listed(named)}"
    return text


def _at_equal_cost(row: pd.Series) -> str:
    """The difference in accuracy at equal cost, and what its interval supports."""
    difference, low, high = (100 * row[f"difference_at_equal_{COST}{bound}"] for bound in ("", "_low", "_high"))
    where = f"at equal {NAMES[COST]}"
    if math.isnan(difference):
        return f"{where} they cannot be compared, as one begins above what the other spends"
    if math.isnan(low):
        return f"{where} {difference:+.1f} points of accuracy (one seed has no interval, so nothing is claimed)"
    if low <= 0 <= high:
        return f"{where} accuracy is not shown to differ ({difference:+.1f} points, {low:+.1f} to {high:+.1f})"
    word = "higher" if difference > 0 else "lower"
    return f"{where} accuracy is {word} by {abs(difference):.1f} points ({difference:+.1f}, {low:+.1f} to {high:+.1f})"


def cost_rows(config: dict[str, Any], comparison: pd.DataFrame, reference: str, group: str) -> Rows:
    """A row for each run of a group: its cost of reaching the reference's last accuracy, and accuracy at equal cost."""
    rows = comparison[(comparison["reference"] == reference) & (comparison["group"] == group)]
    return [
        {
            "run": label_of(config, row["run"]),
            "seeds there": f"{row['reached']} of {row['seeds']}",
            **{f"ratio in {name}": _table_ratio(row, measure) for measure, name in NAMES.items()},
            "ratio in steps to its reverse KL": _table_ratio(row, "step", REVERSE_KL),
            f"points at equal {NAMES[COST]}": _points(row, f"difference_at_equal_{COST}"),
            "likely ahead there": _percent(row[f"ahead_at_equal_{COST}"]),
            "points at the last step": _points(row, "difference_at_equal_step"),
            "points of area": _points(row, "area_difference"),
        }
        for _, row in rows.iterrows()
    ]


def ratio_cell(row: pd.Series, measure: str, target: str = ACCURACY, interval: bool = True) -> str:
    """A ratio with its interval; an upper bound where seeds never reached the target."""
    mean, low, high = (row[f"{target}{measure}_ratio{bound}"] for bound in ("", "_low", "_high"))
    if math.isnan(mean):
        return ""
    if row[f"{target}reached"] == row["seeds"]:
        spread = f", {_short(low)} to {_short(high)}" if low < high else ", the same throughout" if low == high else ""
        return _short(mean) + (spread if interval else "")
    return f"at most {_short(mean)}" + (f", interval up to {_short(high)}" if interval and not math.isnan(high) else "")


def _table_ratio(row: pd.Series, measure: str, target: str = ACCURACY) -> str:
    """The same in short."""
    mean, low, high = (row[f"{target}{measure}_ratio{bound}"] for bound in ("", "_low", "_high"))
    if math.isnan(mean):
        return ""
    below = "" if row[f"{target}reached"] == row["seeds"] else "≤ "
    return below + _short(mean) + ("" if math.isnan(low) else f" ({_short(low)} to {_short(high)})")


def chance_note(comparison: pd.DataFrame, confidence: float) -> str:
    """How many intervals may exclude "no difference" by chance alone: they hold one at a time."""
    count = len(comparison)
    return (
        f"Each interval holds by itself: of {count} comparisons of runs that did not differ, about "
        f"{count * (1 - confidence):.1f} would seem to differ in any one column."
    )


def first_step_rows(config: dict[str, Any], speedup: pd.DataFrame, reference: str) -> Rows:
    """One row per run: the first kept step, seed by seed, that reaches the reference's last accuracy."""
    rows = speedup[speedup["reference"] == reference]
    return [
        {
            "run": label_of(config, str(run)),
            "first step there, by seed": ", ".join(
                "never" if math.isnan(step) else f"{step:.0f}" for step in of_run["first_step"]
            ),
        }
        for run, of_run in rows.groupby("run", sort=False)
    ]


def caveats(config: dict[str, Any], evaluation: pd.DataFrame) -> list[str]:
    """What a reader must know before believing the ratios."""
    baseline = config["evaluation"]["baseline"]
    rows = evaluation[evaluation["run"] == baseline]
    start = rows.loc[rows["step"] == 0, "accuracy"].mean()
    last = rows[rows["step"] == rows["step"].max()]
    noise = 2 * math.sqrt(start * (1 - start) / last["completions"].sum())
    if last["accuracy"].mean() - start > noise:
        return []
    return [
        f"{label_of(config, baseline)} does not end clearly above where it started ({start:.1%} then, "
        f"{last['accuracy'].mean():.1%} at the end): what reaching its accuracy took says nothing here. "
        "Train longer, or read of its reverse KL."
    ]


def tie_findings(config: dict[str, Any], extrapolation: pd.DataFrame) -> list[str]:
    """A sentence for each run or prediction of which a decision accepted what scored exactly as the current weights."""
    found = []
    selected = extrapolation[extrapolation["selected"].astype(bool)]  # no truth values if there are no rows
    for run, decisions in selected.groupby("run", sort=False):
        if ties := int(decisions["tie"].sum()):
            decided = f"{len(decisions)} decision{'s' if len(decisions) > 1 else ''}"
            found.append(
                f"{ties} of {decided} of {label_of(config, str(run))} accepted a tie: the gate saw no difference from "
                "the weights as they were."
            )
    return found


def comparison_section(config: dict[str, Any], tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """`caveats`, `ties`, `starts`, `chance`, an `overview` for each reference, each group's sentences and tables."""
    comparison = tables["comparison"]
    every = list(dict.fromkeys(tables["speedup"]["reference"]))
    labels = {reference: label_of(config, reference) for reference in every}
    of_all = [config["evaluation"].get(role) for role in ("baseline", "reference")]
    references = [reference for reference in every if reference in of_all]
    return {
        "caveats": caveats(config, tables["evaluation"]),
        "ties": tie_findings(config, tables["extrapolation"]),
        "starts": [_end(config, run, tables["summary"].set_index("run").loc[run]) for run in references],
        "chance": chance_note(comparison, config["evaluation"]["confidence"]) if len(comparison) else "",
        "overview": [
            {"reference": labels[reference], "target": name, "rows": overview(config, comparison, reference, target)}
            for reference in references
            for target, name in ((ACCURACY, "accuracy"), (REVERSE_KL, "reverse KL"))
        ],
        "groups": [
            {
                "name": group,
                "sentences": sentences(config, comparison, tables["summary"], group),
                "tables": [
                    {"reference": labels[reference], "rows": rows}
                    for reference in every
                    if (rows := cost_rows(config, comparison, reference, group))
                ],
            }
            for group in groups_of(comparison)
        ],
        "first_steps": [
            {"reference": labels[reference], "rows": first_step_rows(config, tables["speedup"], reference)}
            for reference in references
        ],
    }


def _known(row: pd.Series, measure: str) -> bool:
    return not math.isnan(row[f"{measure}_ratio"])


def _points(row: pd.Series, column: str) -> str:
    """A difference of accuracies in percentage points, with its interval."""
    mean, low, high = (100 * row[f"{column}{bound}"] for bound in ("", "_low", "_high"))
    if math.isnan(mean):
        return ""
    return f"{mean:+.1f}" + ("" if math.isnan(low) else f" ({low:+.1f} to {high:+.1f})")


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.0%}"


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 99.5 else f"{ratio:.1f}" if ratio >= 0.995 else f"{ratio:.2g}"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' if count > 1 else ''}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
