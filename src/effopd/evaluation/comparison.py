"""How runs compare with a reference run: what reaching its accuracy or its reverse KL cost, and how far apart they are.

Paired by seed, and by problem: every state is evaluated on the same problems with the same random numbers
(docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from effopd.evaluation.statistics import crossed_interval, problem_shares

MEASURES = ("step", "generated_tokens", "scored_tokens", "flops", "seconds")  # of cost, as `evaluation` names them
BOUNDS = ("", "_low", "_high")
ACCURACY, REVERSE_KL = "", "reverse_kl_"  # targets of ratios: what their columns begin with
ROUNDING = 1e-9  # scores closer than this are equal

Pair = tuple[str, str]  # a run, and the reference that it is compared with
State = tuple[str, int, int]  # run, seed, step


@dataclass(frozen=True)
class Outcome:
    """What a state did on each of the problems."""

    rewards: np.ndarray  # [problems], mean reward
    reverse_kl: np.ndarray  # [problems], nats, summed over the tokens of its completions
    tokens: np.ndarray  # [problems], of these

    def accuracy(self, shares: np.ndarray) -> np.ndarray:
        """Mean reward where the problems have these shares, [B, problems] -> [B]."""
        return np.asarray(shares @ self.rewards)

    def divergence(self, shares: np.ndarray) -> np.ndarray:
        """Reverse KL per token, in nats; infinite if it is not finite for every problem: [B, problems] -> [B]."""
        if not np.isfinite(self.reverse_kl).all():
            return np.full(len(shares), math.inf)
        return np.asarray(shares @ self.reverse_kl / (shares @ self.tokens))


@dataclass(frozen=True)
class Curve:
    """A run at its K kept steps after the start, for S seeds and B bootstrap draws of the problems.

    What is compared is a score, of which higher is better: the accuracy, or the reverse KL with its sign turned.
    """

    steps: list[int]
    costs: dict[str, np.ndarray]  # of each measure, cumulative, gates included: [S, K]
    score: np.ndarray  # [S, K]
    resampled: np.ndarray  # [B, S, K]; a draw is the same for all runs, seeds and steps

    def at(self, measure: str, budgets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The score once a seed has spent its budget [S]: (on all problems [S], on the draws [B, S]).

        Between kept states it is interpolated linearly in the logarithm of the cost; NaN outside of them.
        """
        weights = np.stack([_weights(c, b) for c, b in zip(self.costs[measure], budgets, strict=True)])
        return (self.score * weights).sum(axis=1), (self.resampled * weights).sum(axis=2)

    def beside(self, other: Curve) -> Curve:
        """The curve restricted to steps comparable with `other`: those that both kept, or beyond the other's last.

        A run that is evaluated more often would seem to reach a target sooner. Its own last step stays.
        """
        seen = [step in other.steps or step > other.steps[-1] or step == self.steps[-1] for step in self.steps]
        return Curve(
            [step for step, kept in zip(self.steps, seen, strict=True) if kept],
            {measure: costs[:, seen] for measure, costs in self.costs.items()},
            self.score[:, seen],
            self.resampled[:, :, seen],
        )

    def area(self, steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Area under the score over log2 of these kept steps, as a share of the largest possible: ([S], [B, S]).

        It is a mean score in which every doubling of the steps counts alike. NaN for fewer than two steps.
        """
        if len(steps) < 2:
            return np.full(len(self.score), math.nan), np.full(self.resampled.shape[:2], math.nan)
        columns, x = [self.steps.index(step) for step in steps], np.log2(steps)
        whole, drawn = (trapezoid(a[..., columns], x, axis=-1) for a in (self.score, self.resampled))
        return whole / (x[-1] - x[0]), drawn / (x[-1] - x[0])


def _weights(costs: np.ndarray, budget: float) -> np.ndarray:
    """The weight of each of K kept states in the interpolated score at a budget."""
    if costs[0] <= 0 or not costs[0] * (1 - ROUNDING) <= budget <= costs[-1] * (1 + ROUNDING):
        return np.full(len(costs), math.nan)
    x, logs = math.log(budget), np.log(costs)
    return np.array([np.interp(x, logs, one) for one in np.eye(len(costs))])


def curves(evaluation: pd.DataFrame, outcomes: Mapping[State, Outcome], target: str = ACCURACY) -> dict[str, Curve]:
    """The curve of each run of the table `evaluation`, which has the columns run, seed, step and those of MEASURES.

    Its score is the accuracy or, with the target REVERSE_KL, that with its sign turned.
    """
    problems = len(next(iter(outcomes.values())).rewards)
    weights = np.vstack([np.full(problems, 1 / problems), problem_shares(problems)])  # all of them, and the draws
    found = {}
    for run, table in evaluation[evaluation["step"] > 0].groupby("run", sort=False):
        table = table.sort_values(["seed", "step"])
        seeds, steps = sorted(table["seed"].unique()), sorted(table["step"].unique())
        shape = len(seeds), len(steps)
        states = [outcomes[str(run), seed, step] for seed in seeds for step in steps]
        scores = [-of.divergence(weights) if target else of.accuracy(weights) for of in states]
        whole, *drawn = np.stack(scores, axis=1).reshape(-1, *shape)
        found[str(run)] = Curve(
            [int(step) for step in steps],
            {measure: table[measure].to_numpy(float).reshape(shape) for measure in MEASURES},
            whole,
            np.stack(drawn),
        )
    return found


def _first(score: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of K kept states [..., K] that reaches a target [...], else the last; and whether one does."""
    reaches = score >= target[..., None] - ROUNDING
    reached = np.asarray(reaches.any(axis=-1))
    return np.where(reached, reaches.argmax(axis=-1), score.shape[-1] - 1), reached


def _spent(costs: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The costs [S, K] at the states `first` [..., S]."""
    return np.asarray(costs[np.arange(len(costs)), first])


def speedup(found: Mapping[str, Curve], seeds: Sequence[int], pairs: Sequence[Pair]) -> pd.DataFrame:
    """What reaching a reference's last accuracy took: a row for each pair and seed, gates counted.

    The target is what the reference reaches at its last step with that seed, and `first_*` is what the first step that
    reaches it took, of those that both kept (`Curve.beside`). `*_ratio` is the reference's cost of reaching it over the
    run's: above 1 the run is faster. Where the run never reaches it (`reached` is 0), `first_*` is empty, and the ratio
    is an upper bound: the run was not there at its last step.
    """
    rows: list[dict[str, Any]] = []
    for run, reference in pairs:
        one, other = found[run].beside(found[reference]), found[reference].beside(found[run])
        target = other.score[:, -1]
        first, reached = _first(one.score, target)
        least, _ = _first(other.score, target)
        for index, seed in enumerate(seeds):
            row: dict[str, Any] = {"run": run, "reference": reference, "seed": seed}
            row |= {"target_accuracy": target[index], "reached": int(reached[index])}
            for measure in MEASURES:
                spent = _spent(one.costs[measure], first)[index]
                row[f"first_{measure}"] = spent if reached[index] else math.nan
                row[f"{measure}_ratio"] = _ratio(_spent(other.costs[measure], least)[index], spent)
            rows.append(row)
    names = [f"first_{measure}" for measure in MEASURES] + [f"{measure}_ratio" for measure in MEASURES]
    return pd.DataFrame(rows, columns=["run", "reference", "seed", "target_accuracy", "reached", *names])


def _ratio(cost: float, other: float) -> float:
    return cost / other if other > 0 else math.nan


def comparison(
    found: Mapping[str, Curve],
    divergences: Mapping[str, Curve],
    groups: Mapping[str, str],
    pairs: Sequence[Pair],
    confidence: float,
) -> pd.DataFrame:
    """A row for each pair of two runs: speed-up, differences at equal cost, area and who is ahead, with intervals.

    - `reached`: seeds that reach the reference's last accuracy; `<measure>_ratio`: geometric mean of the ratios in
      `speedup`. With seeds that never reach it, it is an upper bound, and the interval begins at 0.
    - `step`: the last step that both kept; `difference_at_equal_step`: accuracy less the reference's there.
    - `difference_at_equal_<measure>`: the same at the largest cost that both have spent, seed by seed.
    - `ahead_at_equal_<measure>`: how likely the run is to be ahead there with one of the seeds and other problems.
    - `reverse_kl_reached`, `reverse_kl_<measure>_ratio`: as `reached` and `<measure>_ratio`, of the reference's last
      reverse KL; `reverse_kl`, `reference_reverse_kl`: in nats per token, at `step`.
    - `area`, `reference_area`, `area_difference`: area under the accuracy over log2 of the steps that both kept.

    `_low` and `_high` are bounds over seeds and problems (`crossed_interval`).
    """
    rows = []
    for run, reference in pairs:
        if run == reference:
            continue
        one, other = found[run], found[reference]
        common = [step for step in one.steps if step in other.steps]
        last = common[-1] if common else math.nan
        row: dict[str, Any] = {"run": run, "group": groups[run], "reference": reference}
        row |= {"seeds": len(one.score), "step": last}
        for name, curve in (("accuracy", one), ("reference_accuracy", other)):
            row[name] = _mean_at(curve, last)
        row |= _ratios(one, other, confidence)
        for name, curve in (("reverse_kl", divergences[run]), ("reference_reverse_kl", divergences[reference])):
            row[name] = -_mean_at(curve, last)
        row |= _ratios(divergences[run], divergences[reference], confidence, REVERSE_KL)
        for measure in MEASURES:
            budgets = np.minimum(one.costs[measure][:, -1], other.costs[measure][:, -1])
            if measure == "step":
                budgets = np.full(len(budgets), last)
            values, drawn = _difference(one.at(measure, budgets), other.at(measure, budgets))
            row |= _bounded(f"difference_at_equal_{measure}", crossed_interval(values, drawn, confidence))
            row[f"ahead_at_equal_{measure}"] = _share_ahead(drawn)
        areas = one.area(common), other.area(common)
        row |= {name: float(of[0].mean()) for name, of in zip(("area", "reference_area"), areas, strict=True)}
        row |= _bounded("area_difference", crossed_interval(*_difference(*areas), confidence))
        rows.append(row)
    return pd.DataFrame(rows, columns=comparison_columns())


def comparison_columns() -> list[str]:
    """The columns of `comparison`, in order."""
    names = ["run", "group", "reference", "seeds", "step", "accuracy", "reference_accuracy", "reached"]
    names += [f"{measure}_ratio{bound}" for measure in MEASURES for bound in BOUNDS]
    names += ["reverse_kl", "reference_reverse_kl", f"{REVERSE_KL}reached"]
    names += [f"{REVERSE_KL}{measure}_ratio{bound}" for measure in MEASURES for bound in BOUNDS]
    for measure in MEASURES:
        names += [f"difference_at_equal_{measure}{bound}" for bound in BOUNDS] + [f"ahead_at_equal_{measure}"]
    return [*names, "area", "reference_area", *(f"area_difference{bound}" for bound in BOUNDS)]


def _mean_at(curve: Curve, step: float) -> float:
    """The mean score over seeds at a kept step; NaN if there is none."""
    return float(curve.score[:, curve.steps.index(int(step))].mean()) if not math.isnan(step) else math.nan


def _ratios(one: Curve, other: Curve, confidence: float, target: str = ACCURACY) -> dict[str, Any]:
    """The geometric mean ratio of each measure with its bounds, and how many seeds reach the target.

    A seed that never reaches it counts as if it had at its last step. So clipped, ratios are at least the true ones,
    and the upper bound of their mean is one of the true mean too.
    """
    one, other = one.beside(other), other.beside(one)
    first, reached = _first(one.score, other.score[:, -1])
    first_drawn, _ = _first(one.resampled, other.resampled[..., -1])
    least, _ = _first(other.score, other.score[:, -1])
    least_drawn, _ = _first(other.resampled, other.resampled[..., -1])
    row: dict[str, Any] = {f"{target}reached": int(reached.sum())}
    for measure in MEASURES:
        own, theirs = one.costs[measure], other.costs[measure]
        if min(own[:, 0].min(), theirs[:, 0].min()) <= 0:  # nothing of it was spent
            row |= _bounded(f"{target}{measure}_ratio", (math.nan,) * 3)
            continue
        values = np.log(_spent(theirs, least)) - np.log(_spent(own, first))
        drawn = np.log(_spent(theirs, least_drawn)) - np.log(_spent(own, first_drawn))
        mean, low, high = (math.exp(x) for x in crossed_interval(values, drawn, confidence))
        row |= _bounded(f"{target}{measure}_ratio", (mean, low if reached.all() or math.isnan(low) else 0.0, high))
    return row


def _bounded(name: str, mean_low_high: tuple[float, float, float]) -> dict[str, float]:
    return {f"{name}{bound}": value for bound, value in zip(BOUNDS, mean_low_high, strict=True)}


def _difference(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    return one[0] - other[0], one[1] - other[1]


def _share_ahead(drawn: np.ndarray) -> float:
    """How many of the differences on draws [B, S] are above 0; ties count half."""
    if not np.isfinite(drawn).all():
        return math.nan
    return float((drawn > ROUNDING).mean() + 0.5 * (np.abs(drawn) <= ROUNDING).mean())
