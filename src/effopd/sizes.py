"""Bytes that training takes, from the number of parameters."""

from __future__ import annotations

FLOAT32 = 4


def state_bytes(parameters: float) -> float:
    """A kept state on disk: float32 weights, AdamW's two moments, and the weights of an accepted candidate."""
    return 4 * FLOAT32 * parameters


def update_bytes(parameters: float, teacher_bytes: float) -> float:
    """A colocated update in memory, activations left out: weights, gradients and moments in float32; the teacher."""
    return 4 * FLOAT32 * parameters + teacher_bytes


def logits_bytes(positions: float, vocabulary: int, at_once: float) -> float:
    """The logits of a fixed batch, at most `at_once` of them, in float32: log-softmax and the gradients of both too."""
    return 4 * FLOAT32 * min(positions * vocabulary, at_once)
