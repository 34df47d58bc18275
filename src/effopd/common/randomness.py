"""Randomness without state: every draw is a function of (run seed, purpose, step, index).

No generator is advanced between draws, so shards, order, batch size and resumes cannot change what is drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

Part = int | str


def seed_of(*parts: Part) -> int:
    """The 63-bit seed of one draw, e.g. `seed_of(run_seed, "rollout", step, index)`."""
    text = json.dumps(parts, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: Part) -> np.random.Generator:
    """A counter-based (Philox) generator for the draws named by `parts`."""
    return np.random.Generator(np.random.Philox(key=seed_of(*parts)))


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 [len(seeds), count]; row i depends on seeds[i] alone.

    A larger `count` extends each row and changes none of its first numbers.
    """
    rows = np.empty((len(seeds), count))
    for row, seed in zip(rows, seeds, strict=True):
        np.random.Generator(np.random.Philox(key=seed)).random(out=row)
    return rows


def epoch_order(seed: int, purpose: str, size: int, start: int, count: int) -> list[int]:
    """Positions start, start+1, ..., start+count-1 of an endless stream of shuffled epochs over `size` items.

    Each epoch is a fresh permutation of range(size), seeded by (seed, purpose, epoch).
    """
    order: list[int] = []
    while len(order) < count:
        epoch, offset = divmod(start + len(order), size)
        permutation = generator(seed, purpose, epoch).permutation(size)
        order.extend(int(i) for i in permutation[offset : offset + count - len(order)])
    return order
