"""Bytes that training takes, from the number of parameters."""

from __future__ import annotations

FLOAT32 = 4


def state_bytes(parameters: float) -> float:
    """A kept state on disk: float32 weights, AdamW's two moments, and the weights of an accepted candidate."""
    return 4 * FLOAT32 * parameters


def update_bytes(parameters: float, teacher_bytes: float) -> float:
    """A colocated update in memory, activations left out: weights, gradients and moments in float32; the teacher."""
    return 4 * FLOAT32 * parameters + teacher_bytes


def logits_bytes(tokens: float, vocabulary: int) -> float:
    """The logits of a fixed batch in float32, their log-softmax, and the gradients of both."""
    return 4 * FLOAT32 * tokens * vocabulary
