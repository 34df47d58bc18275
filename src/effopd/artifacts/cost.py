"""The cost ledger: what each stage call took."""

from __future__ import annotations

from typing import Any

SPENT = ("generated_tokens", "scored_tokens", "trained_tokens", "seconds")  # columns that add up


def cost_row(
    stage: str, step: int, seconds: float, *, generated: int = 0, scored: int = 0, judged: int = 0, trained: int = 0
) -> dict[str, Any]:
    """One row of the cost ledger: a stage call, its seconds, and its tokens.

    Tokens: `generated` by the student, `scored` by the teacher, `judged`: run through the student, or a candidate, to
    compare it with the teacher, and `trained` on.
    """
    return {
        "stage": stage,
        "step": step,
        "seconds": round(seconds, 4),
        "generated_tokens": generated,
        "scored_tokens": scored,
        "judged_tokens": judged,
        "trained_tokens": trained,
    }
