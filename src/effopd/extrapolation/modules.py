"""A coefficient of their own for attention, MLP and all other parameters of an update."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

LINE_BY_MODULE = "line_by_module"
KINDS = {"attention": r"\.self_attn\.", "mlp": r"\.mlp\."}
FACTORS = (3 / 2, 2 / 3)  # tried on a module's coefficient, in this order


def by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Parameter names by what they are of: `attention`, `mlp`, `other`; only those that there are."""
    groups: dict[str, list[str]] = {"attention": [], "mlp": [], "other": []}
    for name in names:
        groups[next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")].append(name)
    return {kind: found for kind, found in groups.items() if found}


def refine(
    score: Callable[[Mapping[str, float]], float],
    coefficients: Mapping[str, float],
    best: float,
    accepts: Callable[[float, float], bool],
) -> tuple[dict[str, float], int]:
    """Scale the coefficient of one module after the other where that is better.

    `score` is of a candidate with these coefficients, higher is better; `best` that of `coefficients`. Returns the
    coefficients accepted last, and how many candidates were tried: of each module, up to as many as FACTORS.
    """
    found, tried = dict(coefficients), 0
    for module in coefficients:
        for factor in FACTORS:
            trial = {**found, module: found[module] * factor}
            value = score(trial)
            tried += 1
            if accepts(value, best):
                found, best = trial, value
                break
    return found, tried
