"""A coefficient of their own for attention, MLP and all other parameters of an update."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from effopd.extrapolation.search import SearchResult, better

KINDS = {"attention": r"\.self_attn\.", "mlp": r"\.mlp\."}
FACTORS = (3 / 2, 2 / 3)  # tried on a module's coefficient, in this order


def by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Parameter names by what they are of: `attention`, `mlp`, `other`; only those that there are."""
    groups: dict[str, list[str]] = {"attention": [], "mlp": [], "other": []}
    for name in names:
        groups[next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")].append(name)
    return {kind: found for kind, found in groups.items() if found}


def refine(
    score: Callable[[Mapping[str, float]], float], line: SearchResult, modules: Iterable[str], accept_ties: bool
) -> tuple[dict[str, float], int]:
    """From where a line search ended, scale the coefficient of one module after the other if that is better.

    This project's own. `score` is of a candidate with these coefficients by module, higher is better; as in the line
    search, a tie lengthens no step. Returns the coefficients accepted last, and how many candidates were tried: of each
    module, up to as many as FACTORS; none if the line search accepted none.
    """
    found, tried = dict.fromkeys(modules, line.coefficient), 0
    if line.coefficient == 0:
        return found, tried
    best = next(trial.score for trial in reversed(line.trials) if trial.accepted)
    for module in found:
        for factor in FACTORS:
            trial = {**found, module: found[module] * factor}
            value = score(trial)
            tried += 1
            if better(value, best, accept_ties and factor <= 1):
                found, best = trial, value
                break
    return found, tried
