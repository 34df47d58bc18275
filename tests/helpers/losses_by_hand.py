"""Divergences computed by hand."""

from __future__ import annotations


def by_hand(divergence, p, q):
    """Of two distributions as lists of float64 tensors, p the student's."""

    def kl(a, b):
        return sum(x * (x / y).log() for x, y in zip(a, b, strict=True))

    if divergence == "js":
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        return (kl(p, m) + kl(q, m)) / 2
    return kl(p, q) if divergence == "reverse_kl" else kl(q, p)
