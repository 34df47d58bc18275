"""How often 95 % intervals hold the truth with few seeds: python benchmarks/coverage.py [EXPERIMENTS]

Simulated experiments of S seeds on the same P problems: the difference of two runs' accuracies, where seeds, problems and
single answers all vary (a crossed random-effects model). Four intervals side by side on the same experiments:

- percentile: the percentile bootstrap over the seeds' means;
- hierarchical: the same over seeds and problems;
- t over seeds: Student's t of the seeds' means;
- crossed: `effopd.evaluation.statistics.crossed_interval`, which the tables use.
"""

import argparse

import numpy as np

from effopd.evaluation.statistics import crossed_interval, mean_interval, problem_shares

PROBLEMS = 256
TRUTH = 0.03  # the difference of two runs
# Standard deviations between seeds, between problems, and of single answers: in the order of a difference of accuracies.
CASES = {"seeds vary": (0.03, 0.02, 0.1), "all vary": (0.015, 0.2, 0.3), "problems vary": (0.003, 0.3, 0.3)}


def experiment(rng: np.random.Generator, seeds: int, deviations: tuple[float, float, float]) -> np.ndarray:
    """Per-problem differences [P, S] of one experiment."""
    of_seeds, of_problems, of_answers = deviations
    return (
        TRUTH
        + rng.normal(0, of_seeds, (1, seeds))
        + rng.normal(0, of_problems, (PROBLEMS, 1))
        + rng.normal(0, of_answers, (PROBLEMS, seeds))
    )


def percentile_interval(means: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """The percentile bootstrap over seeds, of means [B, S] of which each draw takes a row."""
    seeds = means.shape[1]
    drawn = np.take_along_axis(means, rng.integers(0, seeds, means.shape), axis=1).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def coverage(seeds: int, deviations: tuple[float, float, float], experiments: int) -> dict[str, float]:
    """The share of experiments whose interval holds the truth, for each kind of interval."""
    rng = np.random.default_rng(0)
    shares = problem_shares(PROBLEMS)
    hits = dict.fromkeys(("percentile", "hierarchical", "t over seeds", "crossed"), 0)
    for _ in range(experiments):
        differences = experiment(rng, seeds, deviations)
        values, resampled = differences.mean(axis=0), shares @ differences
        bounds = {
            "percentile": percentile_interval(np.broadcast_to(values, resampled.shape), rng),
            "hierarchical": percentile_interval(resampled, rng),
            "t over seeds": mean_interval(values.tolist(), 0.95)[1:],
            "crossed": crossed_interval(values, resampled, 0.95)[1:],
        }
        for kind, (low, high) in bounds.items():
            hits[kind] += low <= TRUTH <= high
    return {kind: count / experiments for kind, count in hits.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", type=int, nargs="?", default=2000, help="Experiments of each case (2000).")
    experiments = parser.parse_args().experiments
    print(f"coverage of 95 % intervals, {experiments} experiments, {PROBLEMS} problems")
    for seeds in (3, 5, 10):
        for case, deviations in CASES.items():
            found = coverage(seeds, deviations, experiments)
            print(f"{seeds:3d} seeds, {case:13s} " + "  ".join(f"{kind} {share:.1%}" for kind, share in found.items()))
