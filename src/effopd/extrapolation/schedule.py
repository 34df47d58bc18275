"""When to extrapolate, and which states to keep."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

EVERY_STEP = "every_step"


def powers_of_two(steps: int) -> list[int]:
    """1, 2, 4, ... up to `steps`."""
    return [1 << n for n in range(steps.bit_length())]


def trigger_steps(setting: str | Sequence[int], steps: int) -> list[int]:
    """The steps of a run of `steps` steps after which to extrapolate (paper section 2).

    `setting` is "powers_of_two", "every_step", "none" or an increasing list. Raises ValueError if it does not fit
    the steps: the message says what to do.
    """
    if setting == "none":
        return []
    if setting == EVERY_STEP:
        return list(range(1, steps + 1))
    if setting == "powers_of_two":
        if steps & (steps - 1):
            below = 1 << (steps.bit_length() - 1)
            raise ValueError(
                f"triggers at powers of two need `training.steps` to be one, and it is {steps}. "
                f"Use {below} or {2 * below}, or list the triggers."
            )
        return powers_of_two(steps)
    return _listed_steps(setting, steps)


def checkpoint_steps(setting: str | Sequence[int], steps: int) -> list[int]:
    """The steps of a run of `steps` steps whose state is kept, besides triggers and the last one.

    `setting` is "powers_of_two" or a list. Raises ValueError if a list does not fit the steps; the message says what
    to do.
    """
    return powers_of_two(steps) if setting == "powers_of_two" else _listed_steps(setting, steps)


def _listed_steps(setting: Sequence[int] | str, steps: int) -> list[int]:
    listed = [int(step) for step in setting]
    if any(later <= earlier for earlier, later in itertools.pairwise(listed)):
        raise ValueError(f"{listed} must increase. Sort the list and drop repeats.")
    if listed and listed[-1] > steps:
        raise ValueError(f"{listed[-1]} is beyond the last step ({steps}). Drop it or raise `training.steps`.")
    return listed
