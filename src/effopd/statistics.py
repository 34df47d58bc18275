"""Intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


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
