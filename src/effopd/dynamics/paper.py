"""The paper's findings about weights beside what an experiment's tables say, claim by claim (paper section 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from effopd.evaluation.statistics import mean_interval

AGREES, DIFFERS, OPEN = "agrees", "does not agree", "not shown"
EARLY = 0.10  # share of the directions in the paper's low-rank claim


@dataclass(frozen=True)
class Value:
    """A measured mean and its interval over seeds; without one (one seed, one model) the bounds are NaN."""

    mean: float
    low: float
    high: float

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the value alone if there is none."""
        return (self.mean, self.mean) if math.isnan(self.low) else (self.low, self.high)


@dataclass(frozen=True)
class Comparison:
    """One claim of the paper, and what a run says to it."""

    claim: str
    run: str
    paper_rl: str
    paper_opd: str
    model: Value | None  # the RL teacher, where the claim is about both
    measured: Value
    verdict: str


@cache
def printed() -> dict[str, Any]:
    """The paper's numbers (paper.yaml)."""
    text = resources.files("effopd.dynamics").joinpath("paper.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def verdict(measured: Value, reference: float, above: bool) -> str:
    """Whether a claim that `measured` lies above (or below) `reference` agrees with its interval.

    Not shown where the interval holds the reference, or a value is missing. A mean without an interval is taken as it
    is: say so beside it.
    """
    if math.isnan(measured.mean) or math.isnan(reference):
        return OPEN
    low, high = measured.bounds
    if low <= reference <= high:
        return OPEN
    return AGREES if (low > reference) == above else DIFFERS


def comparisons(
    tables: Mapping[str, pd.DataFrame], runs: Sequence[str], models: Sequence[str], confidence: float
) -> list[Comparison]:
    """Every claim that the tables have something to say to, for each run, against the first of the models (RL)."""
    teacher = f"models/{models[0]}" if models else None
    found: list[Comparison] = []
    for run in runs:
        if teacher:
            found += _spectra(tables["dynamics_spectra"], run, teacher)
            if "dynamics_representation" in tables:
                found += _representation(tables["dynamics_representation"], run, teacher)
        if "dynamics_interventions" in tables:
            found += _interventions(tables["dynamics_interventions"], run, teacher, confidence)
    return sorted(found, key=lambda comparison: _ORDER.index(comparison.claim))


_CLAIMS = {
    "spectral_to_frobenius": ("ρ of OPD is above RL's", True, True),
    "effective_rank": ("the effective rank of OPD is below RL's", False, False),
    "top1pct_norm_ratio": ("R of the top 1 % of directions of OPD is above RL's", True, True),
}
_MOVES_LESS = "OPD moves the representations of the base's text less than RL"
_EQUAL_NORM = "at equal norm OPD is more accurate than RL"
_MLP = "MLP updates alone do more than attention updates alone"
_LOW_RANK = "10 % of the directions keep over 95 % of the accuracy gained"
_SCALED = "an early update scaled to the final norm gains about 80 % of the accuracy (here: at least that)"
_ORDER = [*(claim for claim, *_ in _CLAIMS.values()), _MOVES_LESS, _EQUAL_NORM, _MLP, _LOW_RANK, _SCALED]


def _spectra(table: pd.DataFrame, run: str, teacher: str) -> Iterator[Comparison]:
    rows = table[(table["seed"] == "mean") & (table["module"] == "all")]
    for metric, (claim, above, percent) in _CLAIMS.items():
        rl, opd = (_value(_last(rows[rows["run"] == name]), metric) for name in (teacher, run))
        yield Comparison(
            claim,
            run,
            _listed(printed()[metric]["rl"], percent),
            _listed(printed()[metric]["opd"], percent),
            rl,
            opd,
            verdict(opd, rl.mean, above),
        )


def _representation(table: pd.DataFrame, run: str, teacher: str) -> Iterator[Comparison]:
    """Of the last layer, after the final norm."""
    rows = table[table["seed"] == "mean"]
    rows = rows[rows["layer"].astype(int) == rows["layer"].astype(int).max()]
    rl, opd = (_value(_last(rows[rows["run"] == name]), "cosine") for name in (teacher, run))
    low_high = {who: "{:.3f} to {:.3f}".format(*printed()["representation_cosine"][who]) for who in ("rl", "opd")}
    yield Comparison(_MOVES_LESS, run, low_high["rl"], low_high["opd"], rl, opd, verdict(opd, rl.mean, above=True))


def _interventions(table: pd.DataFrame, run: str, teacher: str | None, confidence: float) -> Iterator[Comparison]:
    rows = table[(table["seed"] == "mean") & (table["run"] == run)]
    final = rows[rows["variant"] == "final"]
    line = table[(table["seed"] == "mean") & (table["run"] == teacher) & (table["analysis"] == "equal_norm")]
    if teacher and len(line) > 1 and len(final):
        rl = _interpolated(line.sort_values("norm"), float(final["norm"].iloc[0]))
        opd = _value(final, "accuracy")
        yield Comparison(_EQUAL_NORM, run, "", "", Value(rl, math.nan, math.nan), opd, verdict(opd, rl, above=True))
    windows = table[(table["run"] == run) & (table["analysis"] == "window") & (table["seed"] != "mean")]
    parts = windows.groupby(["seed", "part"])["accuracy"].mean().unstack("part")
    if {"attention", "mlp"} <= set(parts.columns):
        difference = Value(*mean_interval((parts["mlp"] - parts["attention"]).tolist(), confidence))
        yield Comparison(_MLP, run, "", "above 0", None, difference, verdict(difference, 0.0, above=True))
    kept = rows[(rows["analysis"] == "reconstruction") & (rows["part"] == "top")]
    kept = kept[(kept["amount"] - EARLY).abs() < 1e-9]
    scaled = rows[(rows["analysis"] == "norm_scaling") & (rows["amount"] == 1)]
    for claim, variant, key in (
        (_LOW_RANK, kept, "recovered_at_rank_10pct"),
        (_SCALED, scaled, "recovered_by_scaled_early"),
    ):
        if len(variant):
            recovered, (said,) = _value(variant, "recovered"), printed()[key]["opd"]
            yield Comparison(claim, run, "", f"{said:.0%}", None, recovered, verdict(recovered, said, above=True))


def _interpolated(line: pd.DataFrame, norm: float) -> float:
    """The accuracy at a norm, between the points of an equal-norm curve; NaN beyond its ends."""
    norms, accuracies = line["norm"].to_numpy(float), line["accuracy"].to_numpy(float)
    if not norms[0] <= norm <= norms[-1]:
        return math.nan
    place = int(norms.searchsorted(norm).clip(1, len(norms) - 1))
    share = (norm - norms[place - 1]) / (norms[place] - norms[place - 1])
    return float(accuracies[place - 1] + share * (accuracies[place] - accuracies[place - 1]))


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["step"] == rows["step"].max()]


def _value(rows: pd.DataFrame, column: str) -> Value:
    if not len(rows):
        return Value(math.nan, math.nan, math.nan)
    row = rows.iloc[0]
    return Value(*(float(row[f"{column}{bound}"]) for bound in ("", "_low", "_high")))


def _listed(values: Sequence[float], percent: bool) -> str:
    return ", ".join(f"{100 * value:.1f} %" if percent else f"{value:g}" for value in values)
