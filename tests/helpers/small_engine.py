"""An engine over a tiny model, with prompts and seeds."""

from __future__ import annotations

from effopd.common.randomness import seed_of
from effopd.engines.transformers_engine import TransformersEngine

PROMPTS = [[5, 8, 3], [9, 4, 7, 12, 6, 3, 11], [2, 2], [13, 5, 8, 3, 9], [6], [7, 7, 7, 7]] * 4

SEEDS = [seed_of("test", i) for i in range(len(PROMPTS))]


def engine_of(model, batch_size=8):
    return TransformersEngine(model, eos_id=1, pad_id=0, batch_size=batch_size)
