"""Objectives as pure functions of tensors.

Shapes: M completion tokens of a batch, flattened; V vocabulary entries. Log-probabilities are natural logarithms.
"""

from __future__ import annotations

import math

import torch

SMALLEST_TAIL = 1e-6  # of a sum of float32 probabilities near 1, less is rounding


def gather_logprobs(values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The value of each position's token: [M, V], int64 [M] -> [M]."""
    return values.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log pi(tokens) in float32.

    logits [M, V], tokens int64 [M] -> float32 [M].
    """
    return gather_logprobs(torch.log_softmax(logits.float(), -1), tokens)


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) at each position, exact over the vocabulary, in nats (paper section 1).

    student_logits [M, V], teacher_logits [M, V] -> float32 [M].
    """
    return kl_divergence(*vocabulary_logprobs(student_logits, teacher_logits))


def vocabulary_logprobs(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two models' log-probabilities over the tokens that both have: logits [M, V1], [M, V2] -> 2 x float32 [M, V].

    Models of one tokenizer may differ in rows that pad their vocabularies; V is the smaller one.
    """
    shared = min(first.shape[-1], second.shape[-1])
    return torch.log_softmax(first[:, :shared].float(), -1), torch.log_softmax(second[:, :shared].float(), -1)


def kl_divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """KL(first || second) = sum_v p(v) (log p(v) - log q(v)) at each position, in nats.

    Finite, normalized log-probabilities float32 [M, K] -> float32 [M].
    """
    return (first.exp() * (first - second)).sum(-1)


def js_divergence(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The Jensen-Shannon divergence KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, in nats, at most ln 2.

    Normalized log-probabilities float32 [M, K] -> float32 [M].
    """
    mixture = torch.logaddexp(first, second) - math.log(2.0)
    return (kl_divergence(first, mixture) + kl_divergence(second, mixture)) / 2


def forward_kl_divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student), as `kl_divergence`."""
    return kl_divergence(teacher, student)


def top_k_with_tail(logits: torch.Tensor, top_ids: torch.Tensor) -> torch.Tensor:
    """The log-probabilities of K tokens a position, and in a last "tail" bucket those of all others together.

    logits [M, V], top_ids int64 [M, K] without repeats, K < V -> float32 [M, K + 1], normalized. A divergence between
    two such distributions is at most that over the vocabulary, and has its minimum where they agree. Over the top
    tokens alone it would be none: moving mass out of them could lower it, and its gradient would be wrong
    (arXiv 2605.11182, 2603.25562).
    """
    logits = logits.float()
    others = logits.scatter(-1, top_ids, float("-inf"))
    buckets = torch.cat([logits.gather(-1, top_ids), others.logsumexp(-1, keepdim=True)], -1)
    return torch.log_softmax(buckets, -1)


def with_tail(top_logprobs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of K tokens, and what is left for all others: float32 [M, K] -> float32 [M, K + 1], normalized.

    What is left is taken to be at least SMALLEST_TAIL.
    """
    left = (1 - top_logprobs.double().exp().sum(-1, keepdim=True)).clamp(min=SMALLEST_TAIL)
    return torch.log_softmax(torch.cat([top_logprobs.double(), left.log()], -1), -1).float()


def distillation_advantages(teacher_logprobs: torch.Tensor, rollout_logprobs: torch.Tensor) -> torch.Tensor:
    """Advantage of on-policy distillation: log pi_teacher(y) - log pi_rollout(y), detached (the "k1" reverse KL).

    Both float32 [M] -> float32 [M]. With "discount 0" a token answers only for its own term, and the policy gradient
    of this advantage is an unbiased estimate of the gradient of the reverse KL at the visited positions, provided
    that the tokens were sampled at temperature 1 without truncation.
    """
    return (teacher_logprobs - rollout_logprobs).detach()


def extrapolated_logprobs(
    teacher_logprobs: torch.Tensor, reference_logprobs: torch.Tensor, scale: float
) -> torch.Tensor:
    """log pi_base + scale * (log pi_teacher - log pi_base): a teacher that overshoots by its own lead over the base.

    All float32 [M]. As the teacher of `distillation_advantages` it gives ExOPD's (paper section 2),
    scale * (log pi_T - log pi_base) - (log pi_theta - log pi_base); at scale 1 it is the teacher.
    """
    return reference_logprobs + scale * (teacher_logprobs - reference_logprobs)


def truncated_importance_weights(
    trainer_logprobs: torch.Tensor, rollout_logprobs: torch.Tensor, limit: float
) -> torch.Tensor:
    """min(pi_trainer / pi_rollout, limit) per token, detached: corrects engines whose log-probs differ.

    Both float32 [M] -> float32 [M].
    """
    return (trainer_logprobs.detach() - rollout_logprobs).exp().clamp(max=limit)


def policy_gradient_loss(
    logprobs: torch.Tensor, advantages: torch.Tensor, weights: torch.Tensor, total_tokens: int
) -> torch.Tensor:
    """-sum(weights * advantages * log pi) / total_tokens.

    All float32 [M]; `total_tokens` counts the whole batch, so that micro-batches add up to the same gradient however
    the batch is split. With one update per batch of rollouts PPO's clipping is inert, and this is its gradient.
    """
    return -(weights * advantages * logprobs).sum() / total_tokens


def negative_log_likelihood(logprobs: torch.Tensor, total_tokens: int) -> torch.Tensor:
    """-sum(log pi) / total_tokens, the language-modelling loss of float32 [M] log-probs."""
    return -logprobs.sum() / total_tokens
