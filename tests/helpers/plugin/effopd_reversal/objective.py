"""The skewed reverse KL: KL(student || skew * student + (1 - skew) * teacher), bounded by -log(skew)."""

import math

import torch

from effopd.losses.divergences import kl_divergence, top_k_with_tail
from effopd.losses.metrics import sums_of


def skewed_kl(logits, scores, *, skew):
    """Its sum over m completion tokens, from the student's logits [m, V], and metrics. For `support: top_k`."""
    student, teacher = top_k_with_tail(logits, scores.top_ids), scores.teacher_buckets
    mixture = torch.logaddexp(student + math.log(skew), teacher + math.log1p(-skew))
    per_token = kl_divergence(student, mixture)
    return per_token.sum(), sums_of(value=per_token)
