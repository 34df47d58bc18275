"""Arithmetic that tokens cost: the one place that says how many operations a parameter and token take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # light to import: the Snakefile reads it
    import pandas as pd

FORWARD = 2  # FLOPs a parameter and token of a forward pass: a multiplication and an addition
UPDATE_PASSES = 3  # forward passes that an update is worth: one forward, and backward twice as much


def ledger_flops(cost: pd.DataFrame, student: float, teacher: float) -> pd.Series:
    """FLOPs of each row of a cost ledger (`effopd.artifacts.cost`), for models of so many parameters.

    With N_s and N_t parameters: 2 N_s a generated or judged token, 2 N_t a scored one, 6 N_s a trained one (2 forward,
    4 backward). An estimate that treats all runs alike: ledgers count completions and leave prompts out, and
    attention's own arithmetic, which grows with the length, and passes repeated under gradient checkpointing are left
    out too. Adapters (LoRA) are counted like a full update, which is too much by nearly a third: frozen matrices need
    no gradients of their own.
    """
    of_student = cost["generated_tokens"] + cost["judged_tokens"] + UPDATE_PASSES * cost["trained_tokens"]
    return FORWARD * (student * of_student + teacher * cost["scored_tokens"])
