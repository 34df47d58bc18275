"""The paper's claims about weights against tables small enough to judge by hand."""

import math

import pandas as pd
import pytest

from effopd.dynamics.paper import AGREES, DIFFERS, OPEN, Value, comparisons, printed, verdict

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "above", "expected"),
    [
        (Value(0.5, 0.4, 0.6), True, AGREES),
        (Value(0.5, 0.4, 0.6), False, DIFFERS),
        (Value(0.1, 0.0, 0.2), True, DIFFERS),
        (Value(0.35, 0.2, 0.5), True, OPEN),  # the interval holds the reference
        (Value(0.5, NAN, NAN), True, AGREES),  # one seed: the value as it is
        (Value(0.3, NAN, NAN), True, OPEN),
        (Value(NAN, NAN, NAN), True, OPEN),
    ],
)
def test_a_verdict_follows_the_interval(value, above, expected):
    assert verdict(value, 0.3, above) == expected


def test_nothing_to_compare_with_shows_nothing():
    assert verdict(Value(1.0, 0.9, 1.1), NAN, above=True) == OPEN


def test_the_printed_numbers_are_fractions_of_all_sizes():
    numbers = printed()
    for metric in ("spectral_to_frobenius", "effective_rank", "top1pct_norm_ratio"):
        assert len(numbers[metric]["rl"]) == len(numbers[metric]["opd"]) == len(numbers["sizes"])
    assert all(rl < opd < 1 for rl, opd in zip(*numbers["spectral_to_frobenius"].values(), strict=True))
    assert all(rl > opd for rl, opd in zip(*numbers["effective_rank"].values(), strict=True))


def spectra():
    columns = ["run", "seed", "step", "module", "spectral_to_frobenius", "effective_rank", "top1pct_norm_ratio"]
    rows = [
        ("opd", "0", 4, "all", 9.0, 9.0, 9.0),  # a seed: not looked at
        ("opd", "mean", 2, "all", 0.1, 90.0, 0.1),  # an earlier step
        ("opd", "mean", 4, "all", 0.5, 30.0, 0.6),
        ("opd", "mean", 4, "q", 0.0, 0.0, 0.0),
        ("models/teacher", "mean", 30, "all", 0.4, 31.0, 0.7),
    ]
    table = pd.DataFrame(rows, columns=columns)
    for metric, half in (("spectral_to_frobenius", 0.05), ("effective_rank", 2.0), ("top1pct_norm_ratio", 0.05)):
        table[f"{metric}_low"], table[f"{metric}_high"] = table[metric] - half, table[metric] + half
    return table


def interventions(accuracies):
    """Rows of `mean` and of two seeds for the run, and of the teacher's equal-norm line."""
    rows = []
    for run, seed, analysis, variant, part, amount, norm, accuracy, recovered in accuracies:
        rows.append(
            {
                "run": run, "seed": seed, "analysis": analysis, "variant": variant, "part": part, "amount": amount, "step": 4,
                "norm": norm, "accuracy": accuracy, "accuracy_low": NAN, "accuracy_high": NAN, "recovered": recovered,
                "recovered_low": NAN, "recovered_high": NAN,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


VARIANTS = interventions(
    [
        ("opd", "mean", "path", "final", "", NAN, 1.5, 0.8, 1.0),
        ("opd", "mean", "reconstruction", "top 10", "top", 0.1, 1.5, 0.7, 0.9),
        ("opd", "mean", "norm_scaling", "beta 1", "", 1.0, 1.5, 0.75, 0.85),
        ("opd", "mean", "norm_scaling", "beta 0", "", 0.0, 0.5, 0.4, 0.1),
        *(("opd", seed, "window", f"{part} {layer}", part, NAN, 1.0, accuracy, NAN)
          for seed, shift in (("0", 0.0), ("1", 0.02))
          for part, accuracy in (("attention", 0.4), ("mlp", 0.6 + shift))
          for layer in (0, 1)),
        ("models/teacher", "mean", "equal_norm", "equal_norm 0", "", 0.0, 0.0, 0.3, 0.0),
        ("models/teacher", "mean", "equal_norm", "equal_norm 0.5", "", 0.5, 1.0, 0.5, 0.4),
        ("models/teacher", "mean", "equal_norm", "equal_norm 1", "", 1.0, 2.0, 0.8, 1.0),
    ]
)  # fmt: skip


def test_every_claim_is_judged_from_the_last_step_and_the_means():
    tables = {"dynamics_spectra": spectra(), "dynamics_interventions": VARIANTS}
    found = {c.claim: c for c in comparisons(tables, ["opd"], ["teacher"], 0.95)}
    rho = found["ρ of OPD is above RL's"]
    assert (rho.model.mean, rho.measured.mean, rho.verdict) == (0.4, 0.5, AGREES)
    assert rho.paper_rl == "33.2 %, 19.7 %, 32.7 %, 24.4 %"
    assert found["the effective rank of OPD is below RL's"].verdict == OPEN
    assert found["R of the top 1 % of directions of OPD is above RL's"].verdict == DIFFERS
    equal = found["at equal norm OPD is more accurate than RL"]
    assert equal.model.mean == pytest.approx(0.65)  # half way between 0.5 and 0.8
    assert equal.verdict == AGREES
    mlp = found["MLP updates alone do more than attention updates alone"]
    assert mlp.measured.mean == pytest.approx(0.21)
    assert mlp.measured.low == pytest.approx(0.21 - 12.706 * 0.01, abs=1e-3)
    assert mlp.verdict == AGREES
    assert found["10 % of the directions keep over 95 % of the accuracy gained"].verdict == DIFFERS
    assert next(c for claim, c in found.items() if claim.startswith("an early update")).measured.mean == 0.85


def test_a_run_beyond_the_teachers_norm_is_not_compared_with_it():
    further = VARIANTS.assign(norm=VARIANTS["norm"].where(VARIANTS["variant"] != "final", 3.0))
    tables = {"dynamics_spectra": spectra(), "dynamics_interventions": further}
    equal = next(c for c in comparisons(tables, ["opd"], ["teacher"], 0.95) if c.claim.startswith("at equal norm"))
    assert math.isnan(equal.model.mean)
    assert equal.verdict == OPEN


def test_without_a_teacher_only_its_own_claims_are_judged():
    tables = {"dynamics_spectra": spectra(), "dynamics_interventions": VARIANTS}
    claims = {c.claim for c in comparisons(tables, ["opd"], [], 0.95)}
    assert "ρ of OPD is above RL's" not in claims
    assert "10 % of the directions keep over 95 % of the accuracy gained" in claims
