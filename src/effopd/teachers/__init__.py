"""Teachers: who scores rollouts, a model at hand or a server (docs/engines.md).

Light to import (no torch): the plan asks which modules are in use.
"""

from __future__ import annotations

# Who scores rollouts, by `training.scored_by`.
TEACHERS = {"local": "effopd.teachers.scoring", "endpoint": "effopd.teachers.endpoint"}


def teacher_module(scored_by: str) -> str:
    """The module that scores rollouts so."""
    return TEACHERS[scored_by]
