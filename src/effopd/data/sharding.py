"""How the rollouts of a step are sharded: by whole fixed batches, so that no rollout or score depends on it.

Light to import (no torch): the configuration's check reads it.
"""

from __future__ import annotations

from dataclasses import dataclass


def batches_of(rollouts: int, batch_size: int) -> int:
    """How many fixed batches a step has, the last one perhaps smaller."""
    return -(-rollouts // batch_size)


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` nearly equal parts of a step's fixed batches, in order."""

    index: int = 0
    count: int = 1

    def batches(self, rollouts: int, batch_size: int) -> range:
        """Which of the fixed batches, of `batch_size` rollouts each."""
        total = batches_of(rollouts, batch_size)
        return range(self.index * total // self.count, (self.index + 1) * total // self.count)

    def rows(self, rollouts: int, batch_size: int) -> range:
        """Which of the rollouts."""
        batches = self.batches(rollouts, batch_size)
        return range(batches.start * batch_size, min(batches.stop * batch_size, rollouts))


WHOLE = Shard()
