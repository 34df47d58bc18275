"""Intervals: over seeds, of one seed over problems, and over both (docs/statistics.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

MEAN = "mean"  # the `seed` of rows that hold means over seeds
RESAMPLES, BATCH = 999, 100  # of the bootstrap: how many, and how many at a time


def mean_interval(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Mean and Student-t confidence interval of independent values: (mean, low, high).

    The bounds are NaN for fewer than two values: one seed says nothing of the spread.
    """
    sample = np.asarray(values, float)
    if len(sample) == 0:
        return math.nan, math.nan, math.nan
    mean = float(sample.mean())
    if len(sample) == 1:
        return mean, math.nan, math.nan
    half = stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return mean, mean - float(half), mean + float(half)


def bootstrap_interval(
    sums: np.ndarray, counts: np.ndarray, confidence: float, reference: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap bounds, low and high [V], of V ratios sum_i sums[v, i] / sum_i counts[v, i] over N units.

    Units (problems, completions) are drawn with replacement. With `reference`, sums and counts [N] of one more ratio,
    that one of the same units is subtracted: the bounds are of a paired difference. `counts` may be [1, N]. The draws
    are the same at every call. NaN for fewer than two units.
    """
    samples = [sums, np.broadcast_to(counts, sums.shape)]
    samples += [np.broadcast_to(part, sums.shape) for part in reference or ()]
    if sums.shape[1] < 2:
        return np.full(len(sums), math.nan), np.full(len(sums), math.nan)

    def statistic(top: np.ndarray, bottom: np.ndarray, *other: np.ndarray, axis: int) -> np.ndarray:
        ratio = top.sum(axis=axis) / bottom.sum(axis=axis)
        return np.asarray(ratio - other[0].sum(axis=axis) / other[1].sum(axis=axis) if other else ratio)

    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        paired=True,
        axis=1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return np.asarray(found.confidence_interval.low), np.asarray(found.confidence_interval.high)


def problem_shares(problems: int) -> np.ndarray:
    """What share each of N problems has in RESAMPLES draws of N with replacement: [RESAMPLES, N], rows sum to 1.

    The draws are the same at every call, so whatever is weighed by them is paired.
    """
    drawn = np.random.default_rng(0).multinomial(problems, np.full(problems, 1 / problems), RESAMPLES)
    return np.asarray(drawn / problems)


def crossed_interval(values: np.ndarray, resampled: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Mean over seeds, and its interval for other seeds and other problems: (mean, low, high).

    `values` [S] is a statistic of each seed on all problems, `resampled` [B, S] the same on B bootstrap draws of the
    problems, one draw for all seeds of a row. Seeds and problems are crossed, as in a two-way layout. Seeds are few,
    and resampling them would give intervals that are too short (docs/statistics.md): their part of the variance is
    s^2 / S with S - 1 degrees of freedom. Problems are many: their part is the bootstrap's variance of the mean. The
    noise of single answers is in both, and is counted once. Degrees of freedom after Welch and Satterthwaite. The
    bounds are NaN for one seed.
    """
    seeds, draws = len(values), len(resampled)
    mean = float(values.mean())
    if seeds < 2 or not (np.isfinite(values).all() and np.isfinite(resampled).all()):
        return mean, math.nan, math.nan
    of_seeds = float(values.var(ddof=1)) / seeds
    of_problems = float(resampled.mean(axis=1).var(ddof=1))
    in_both = (float(resampled.var(axis=0, ddof=1).mean()) - of_problems) / (seeds - 1)
    variance = max(of_seeds + of_problems - in_both, of_seeds, of_problems)
    if variance == 0:
        return mean, mean, mean
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_problems**2 / (draws - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return mean, mean - half, mean + half


def with_means(table: pd.DataFrame, keys: Sequence[str], values: Sequence[str], confidence: float) -> pd.DataFrame:
    """The rows by run and seed, and after each run's those of its mean over seeds, with Student-t bounds.

    `table` has the columns run, seed, `keys` and `values`; the bounds are <value>_low and <value>_high.
    """
    parts = []
    for _, of_run in table.groupby("run", sort=False):
        parts.append(of_run)
        rows = []
        for place, group in of_run.groupby(list(keys), sort=False, dropna=False):
            row: dict[str, Any] = dict(zip(keys, place, strict=True)) | {"run": group["run"].iloc[0], "seed": MEAN}
            for name in values:
                mean, low, high = mean_interval(group[name].tolist(), confidence)
                row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
        parts.append(pd.DataFrame(rows))
    together = pd.concat([part.astype(object) for part in parts], ignore_index=True)
    return together[[name for name in interval_columns(keys, values) if name in together]].infer_objects()


def interval_columns(keys: Sequence[str], values: Sequence[str]) -> list[str]:
    """The columns of such a table, in order."""
    return ["run", "seed", *keys, *(f"{name}{bound}" for name in values for bound in ("", "_low", "_high"))]
