"""GPUs: the time that arithmetic and decoding take on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from effopd.workflow.estimates.architecture import Architecture
from effopd.workflow.estimates.memory import BFLOAT16


@dataclass(frozen=True)
class Hardware:
    """GPUs that work together, and how much of their peak the work reaches."""

    count: int
    tflops: float  # dense bfloat16, each
    bandwidth_gb: float  # GB/s of its memory, each
    memory_gb: float  # each
    utilization: float  # share of peak arithmetic in updates and scores
    bandwidth_share: float  # share of peak bandwidth in decoding

    @classmethod
    def of(cls, assumed: Mapping[str, Any], count: int) -> Hardware:
        """That many of the GPUs in the configuration's section `estimate`."""
        gpu = assumed["gpu"]
        return cls(
            count,
            gpu["tflops"],
            gpu["bandwidth_gb"],
            gpu["memory_gb"],
            assumed["utilization"],
            assumed["bandwidth_share"],
        )

    def alone(self, model: Architecture) -> Hardware:
        """What a job by itself works on: one GPU, or as many as hold one copy of the weights."""
        return replace(self, count=self._gpus_a_copy(model))

    def compute(self, flops: float) -> float:
        """Seconds of arithmetic."""
        return flops / (self.count * self.tflops * 1e12 * self.utilization)

    def decode(self, model: Architecture, sequences: float, prompt: float, mean: float, longest: float) -> float:
        """Seconds to generate completions of `mean` tokens, the longest of `longest`, in bfloat16.

        A step reads the weights once and every sequence's cache; as many sequences go together as there is memory for.
        """
        weights = BFLOAT16 * model.parameters
        shards = self._gpus_a_copy(model)
        replicas = max(1, self.count // shards)
        own = sequences / replicas
        cache = model.cache_bytes * (prompt + mean / 2)
        room = max(1.0, (0.8e9 * self.memory_gb * shards - weights) / cache)
        together = min(own, room)
        steps = max(longest, mean * own / together)
        read = (weights + together * cache) / (shards * self.bandwidth_gb * 1e9 * self.bandwidth_share)
        arithmetic = (
            together * model.forward_flops(prompt + mean / 2) / (shards * self.tflops * 1e12 * self.utilization)
        )
        return steps * max(read, arithmetic)

    def _gpus_a_copy(self, model: Architecture) -> int:
        return max(1, math.ceil(BFLOAT16 * model.parameters / (0.6e9 * self.memory_gb)))
