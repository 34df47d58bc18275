"""What a gate that counts right answers can tell: the chance that noise alone is accepted, and the gain that it sees.

The model: the gate asks for N answers (examples times samples), and each answer of weights with accuracy p is right
with probability p, whatever the others are. Problems are taken to be equally hard. Unpaired, the current weights and
every candidate draw answers of their own: counts are independent and Binomial(N, p). Paired, a candidate that is as
good answers as the current weights do, and one that is better gets more right and none wrong that was right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

from effopd.extrapolation.search import LONGEST_STEP

POWER = 0.8  # the chance with which a gain must be accepted to count as seen
_PRECISION = 1e-4  # to which the smallest such gain is found


@dataclass(frozen=True)
class CountingGate:
    """A gate that counts right answers: how many it asks for, and when a candidate displaces the best so far."""

    answers: int
    accept_ties: bool
    paired: bool

    def chance(self, accuracy: float, gain: float = 0.0) -> float:
        """The probability that a candidate whose accuracy is larger by `gain` is accepted over the current weights."""
        if self.paired:
            return 1.0 if self.accept_ties else 1.0 - (1.0 - gain) ** self.answers
        current, candidate = self.counts(accuracy), self.counts(min(1.0, accuracy + gain))
        return _probability((candidate * _below(current, self.accept_ties)).sum())

    def visible_gain(self, accuracy: float) -> float:
        """The smallest gain in accuracy that is accepted with probability POWER; NaN if none up to accuracy 1 is."""
        low, high = 0.0, 1.0 - accuracy
        if self.chance(accuracy, low) >= POWER:
            return low
        if self.chance(accuracy, high) < POWER:
            return math.nan
        while high - low > _PRECISION:
            middle = (low + high) / 2
            low, high = (low, middle) if self.chance(accuracy, middle) >= POWER else (middle, high)
        return high

    def counts(self, accuracy: float) -> np.ndarray:
        """The probabilities of 0, ..., N right answers."""
        probabilities: np.ndarray = binom.pmf(np.arange(self.answers + 1), self.answers, accuracy)
        return probabilities


def chance_of_all(gate: CountingGate, accuracy: float, candidates: int) -> float:
    """The probability that candidates no better than the current weights are accepted one after the other, all of them.

    The exact sum over all counts: each must be at least (where ties are rejected, above) the one before.
    """
    if gate.paired:
        return gate.chance(accuracy)
    counts = gate.counts(accuracy)
    best = counts  # of the best so far and all accepted up to here
    for _ in range(candidates):
        best = counts * _below(best, gate.accept_ties)
    return _probability(best.sum())


def chance_of_last(gate: CountingGate, accuracy: float, candidates: int) -> float:
    """The probability that the last of so many candidates is taken, where all are tried and none is better."""
    if gate.paired:
        return gate.chance(accuracy)
    counts = gate.counts(accuracy)
    return _probability((counts * _below(counts, gate.accept_ties) ** candidates).sum())


def chance_of_longest_line(gate: CountingGate, accuracy: float, candidates: int) -> float:
    """The probability that a line search, which doubles from 1 on, whatever the list says, accepts its longest step."""
    return chance_of_all(gate, accuracy, 1 + round(math.log2(LONGEST_STEP)))


# By the name of the search: the probability that it ends at its largest coefficient though no candidate is better.
CARRIED: dict[str, Callable[[CountingGate, float, int], float]] = {
    "first_failure": chance_of_all,
    "all": chance_of_last,
    "line": chance_of_longest_line,
}


def upper_accuracy(right: float, answers: int, confidence: float = 0.95) -> float:
    """The largest accuracy that `right` of so many answers leave possible (Clopper and Pearson's one-sided bound)."""
    return 1.0 if right >= answers else float(beta.ppf(confidence, right + 1, answers - right))


def _below(probabilities: np.ndarray, inclusive: bool) -> np.ndarray:
    """For each count, the sum of the probabilities of smaller counts, and of the count itself where `inclusive`."""
    sums = np.cumsum(probabilities)
    return sums if inclusive else np.concatenate([[0.0], sums[:-1]])


def _probability(value: float) -> float:
    """A sum of probabilities without what rounding added to it."""
    return min(1.0, float(value))
