"""The variants of the weights that interventions evaluate (paper section 3, items 1, 3, 4, 6 and 8).

Light to import (no torch): estimates count them. effopd.dynamics.variant_weights makes their weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from effopd.specs.dynamics import InterventionSettings, WindowSettings

BASE, FINAL = "base", "final"
COLUMNS = ("part", "amount", "layer", "first_layer", "last_layer")


@dataclass(frozen=True)
class Variant:
    """One set of weights: what was varied, of the weights after which step (0: the base's)."""

    analysis: str
    name: str
    step: int
    part: str | None = None
    amount: float | None = None
    layer: int | None = None
    first_layer: int | None = None
    last_layer: int | None = None

    def row(self) -> dict[str, Any]:
        """The variant's columns in interventions.parquet."""
        columns = {name: getattr(self, name) for name in COLUMNS}
        return {"analysis": self.analysis, "variant": self.name, "step": self.step, **columns}


def variants(settings: InterventionSettings, steps: Sequence[int], layers: int, own_head: bool) -> list[Variant]:
    """All variants that are asked for of a base and its states after `steps`.

    The first two are the base and the final state, with which the others are compared. `own_head` says whether the
    output matrix is another one than the embedding.
    """
    chosen, final = settings.interventions, max(steps)
    found = [Variant("path", BASE, 0), Variant("path", FINAL, final)]
    if "path" in chosen:
        found += [Variant("path", f"path {step}", step) for step in steps if step != final]
    if settings.equal_norm is not None:
        found += [Variant("equal_norm", f"equal_norm {a:g}", final, amount=a) for a in settings.equal_norm.fractions]
    if "embeddings" in chosen:
        parts = ("embedding", "embedding_and_head") if own_head else ("embedding",)
        found += [Variant("embeddings", f"base {part.replace('_', ' ')}", final, part) for part in parts]
    if settings.window is not None:
        found += _windows(settings.window, final, layers)
    if settings.reconstruction is not None:
        kept = {"top": settings.reconstruction.top, "bottom": settings.reconstruction.bottom}
        found += [
            Variant("reconstruction", f"reconstruction {part} {percent:g} %", final, part, percent / 100)
            for part, percents in kept.items()
            for percent in percents
        ]
    if settings.norm_scaling is not None:
        early = early_step(steps, settings.norm_scaling.progress)
        found += [
            Variant("norm_scaling", f"norm_scaling {beta:g}", early, amount=beta)
            for beta in settings.norm_scaling.betas
        ]
    return found


def early_step(steps: Sequence[int], progress: float) -> int:
    """The kept step nearest, in ratio, to a share of the last one; the earlier of two that are as near."""
    return min(steps, key=lambda step: abs(math.log(step / (progress * max(steps)))))


def windows(layers: int, width: float, stride: int) -> Iterator[tuple[int, int, int]]:
    """(center, first, last) of windows of layers that reach floor(width * layers / 2) to both sides of their center.

    As in the paper they are cut off at the bottom and the top, where they are therefore narrower.
    """
    reach = math.floor(width * layers / 2)
    for center in range(0, layers, stride):
        yield center, max(0, center - reach), min(layers - 1, center + reach)


def _windows(settings: WindowSettings, step: int, layers: int) -> Iterator[Variant]:
    for part in settings.parts:
        for center, first, last in windows(layers, settings.width, settings.stride):
            name = f"window {part} {center}"
            yield Variant("window", name, step, part, layer=center, first_layer=first, last_layer=last)
