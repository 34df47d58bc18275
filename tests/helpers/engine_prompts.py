"""Prompts, seeds and the limit that all engines are tried with."""

from __future__ import annotations

from effopd.common.randomness import seed_of

PROMPTS = [[5, 8, 3], [9, 4, 7, 12, 6, 3, 11], [2, 2], [13, 5, 8, 3, 9], [6], [7, 7, 7, 7]] * 2

SEEDS = [seed_of("test", i) for i in range(len(PROMPTS))]

LIMIT = 20
