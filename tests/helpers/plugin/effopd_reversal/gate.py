"""How surprised the teacher is by the student's answers."""

import numpy as np

from effopd.extrapolation.gate import GateValue


def surprise(measured, *, quantile):
    """A quantile of log pi_student - log pi_teacher over each answer's tokens, and its mean: lower is better."""
    pairs = zip(measured.student_logprobs, measured.teacher_logprobs, strict=True)
    items = [float(np.quantile(student - teacher, quantile)) for student, teacher in pairs]
    return GateValue(value=np.mean(items), score=-np.mean(items), per_item=items)
