"""Intervals: over seeds, and of one seed over problems."""

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


def ratio_interval(ratios: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Geometric mean and interval of positive ratios: the t interval of their logarithms."""
    low_mean_high = mean_interval(np.log(np.asarray(ratios, float)).tolist(), confidence)
    return tuple(math.exp(x) for x in low_mean_high)  # type: ignore[return-value]


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
