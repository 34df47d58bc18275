"""Which sequences share a forward pass, so that little of it is padding.

Light to import (no torch).
"""

from __future__ import annotations

from collections.abc import Sequence

LARGEST_PADDING = 0.25  # how much shorter than a pass's longest sequence another may be
FEWEST_POSITIONS = 2**13  # of a pass: enough that its arithmetic, not its calls, takes the time of a billion parameters


def passes_of(lengths: Sequence[int], size: int) -> list[list[int]]:
    """N sequences' lengths -> rows of passes of at most `size`, the longest first.

    A pass also ends where it has `FEWEST_POSITIONS` and the next sequence is shorter than its longest by more than
    `LARGEST_PADDING`. One pass for all leaves them in their order.
    """
    passes: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not passes or _is_full(passes[-1], lengths, size, lengths[row]):
            passes.append([])
        passes[-1].append(row)
    return [sorted(passes[0])] if len(passes) == 1 else passes


def _is_full(rows: list[int], lengths: Sequence[int], size: int, following: int) -> bool:
    longest = lengths[rows[0]]
    large = len(rows) * longest >= FEWEST_POSITIONS
    return len(rows) == size or (large and following < (1 - LARGEST_PADDING) * longest)
