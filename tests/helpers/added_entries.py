"""Gates, objectives and a search as another package would add them; most compute what this one's do."""

from __future__ import annotations

import numpy as np
import pytest

from effopd.common import registry
from effopd.common.registry import Entry
from effopd.extrapolation.gate import GateValue
from effopd.losses.divergences import kl_divergence, top_k_with_tail
from effopd.losses.metrics import sums_of


def add(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Have the functions of this module be entries of a kind."""
    names = ("own_accuracy", "own_reverse_kl", "sampled_kl", "no_value", "own_forward_kl", "scaled_kl", "every")
    monkeypatch.setattr(
        registry, "entries", lambda _: {name: Entry(kind, name, __name__, name, "one") for name in names}
    )


def own_accuracy(measured):
    return GateValue(np.mean(measured.rewards), np.mean(measured.rewards), measured.rewards)


def own_reverse_kl(measured):
    items = [row.sum(dtype=np.float64) for row in measured.reverse_kl]
    value = sum(items) / measured.rollouts.completion_tokens
    return GateValue(value, -value, items)


def sampled_kl(measured, *, scale):
    pairs = zip(measured.student_logprobs, measured.teacher_logprobs, strict=True)
    items = [scale * (student - teacher).mean() for student, teacher in pairs]
    return GateValue(np.mean(items), -np.mean(items), items)


def no_value(measured):
    return 1.0


def own_forward_kl(logits, scores):
    values = kl_divergence(scores.teacher_buckets, top_k_with_tail(logits, scores.top_ids))
    return values.sum(), sums_of(value=values)


def scaled_kl(logits, scores, *, scale):
    values = scale * kl_divergence(top_k_with_tail(logits, scores.top_ids), scores.teacher_buckets)
    return values.sum(), sums_of(value=values)


def every(trials, coefficients, start, *, stride):
    for coefficient in (start, *coefficients[::stride]):
        trials.trial(coefficient)
    return f"one of {stride}"
