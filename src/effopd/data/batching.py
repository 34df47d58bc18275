"""Which sequences share a forward pass, so that little of it is padding.

Light to import (no torch).
"""

from __future__ import annotations

from collections.abc import Sequence

LARGEST_PADDING = 0.25  # share of a pass's longest sequence by which another may be shorter
# Positions of a pass, padding included, that keep a GPU busy with a billion parameters: by arithmetic, not measured.
FEWEST_POSITIONS = 2**13


def passes_of(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Lengths of N sequences in tokens -> rows of passes of at most `size` sequences, the longest first.

    A pass also ends if it has `FEWEST_POSITIONS` and the next sequence is shorter than its longest by more than
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
