"""Objectives as pure functions of tensors.

Shapes: M completion tokens of a batch, flattened; V vocabulary entries. Log-probabilities are natural logarithms.
"""

from __future__ import annotations

import torch


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log pi(tokens) in float32.

    logits [M, V], tokens int64 [M] -> float32 [M].
    """
    return torch.log_softmax(logits.float(), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def reverse_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """KL(student || teacher) at each position, exact over the vocabulary, in nats (paper section 1).

    student_logits, teacher_logits [M, V] -> float32 [M].
    """
    student = torch.log_softmax(student_logits.float(), -1)
    teacher = torch.log_softmax(teacher_logits.float(), -1)
    return (student.exp() * (student - teacher)).sum(-1)


def distillation_advantages(teacher_logprobs: torch.Tensor, rollout_logprobs: torch.Tensor) -> torch.Tensor:
    """Advantage of on-policy distillation: log pi_teacher(y) - log pi_rollout(y), detached (the "k1" reverse KL).

    Both float32 [M] -> float32 [M]. With "discount 0" a token answers only for its own term, and the policy gradient
    of this advantage is an unbiased estimate of the gradient of the reverse KL at the visited positions, provided
    that the tokens were sampled at temperature 1 without truncation.
    """
    return (teacher_logprobs - rollout_logprobs).detach()


def group_advantages(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """GRPO advantages: rewards less the mean of their group, not divided by the deviation (the "Dr. GRPO" form).

    rewards float32 [N], consecutive `group` rows share a prompt -> float32 [N]. Raises ValueError where N is no
    multiple of `group`.
    """
    if len(rewards) % group:
        raise ValueError(f"{len(rewards)} rewards do not divide into groups of {group}")
    grouped = rewards.view(-1, group)
    return (grouped - grouped.mean(1, keepdim=True)).view(-1)


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
    the batch is split. One update is made per batch of rollouts, where PPO's clipping is inert.
    """
    return -(weights * advantages * logprobs).sum() / total_tokens


def negative_log_likelihood(logprobs: torch.Tensor, total_tokens: int) -> torch.Tensor:
    """-sum(log pi) / total_tokens, the language-modelling loss of float32 [M] log-probs."""
    return -logprobs.sum() / total_tokens
