"""How a learning rate falls over a training whose end is known."""

from __future__ import annotations

import math

FINAL_LR_SHARE = 0.05  # what it falls to


def decayed(how: str, step: int, steps: int) -> float:
    """The share of the peak rate at a step (from 1) of `steps`: `cosine`, `linear`, or `constant`, which is 1."""
    if how == "constant":
        return 1.0
    progress = step / steps
    left = (1 + math.cos(math.pi * progress)) / 2 if how == "cosine" else 1 - progress
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * left
