"""Rewards, advantages and losses of GRPO, DAPO and PPO as pure functions of tensors.

Shapes: N rollouts, consecutive `group` rows of a prompt; M completion tokens of them all, flattened. What is divided by
`total_tokens` counts a whole minibatch, so that micro-batches and ranks add up to the same however it is split.
GRPO: arXiv 2402.03300; DAPO: 2503.14476; PPO: 1707.06347; generalized advantage estimation: 1506.02438.
"""

from __future__ import annotations

import torch

SMALLEST_DEVIATION = 1e-6


def group_advantages(rewards: torch.Tensor, group: int, scale: bool = False) -> torch.Tensor:
    """Rewards less the mean of their group, divided by its sample deviation where `scale` (GRPO section 4.1.2).

    Without it, the "Dr. GRPO" form (arXiv 2503.20783). rewards float32 [N] -> float32 [N]. Raises ValueError if N is
    no multiple of `group`.
    """
    if len(rewards) % group:
        raise ValueError(f"{len(rewards)} rewards do not divide into groups of {group}")
    grouped = rewards.view(-1, group)
    centered = grouped - grouped.mean(1, keepdim=True)
    if scale:
        differ = informative_groups(rewards, group).unsqueeze(1)  # elsewhere rounding alone would be scaled up
        centered = differ * centered / (grouped.std(1, keepdim=True) + SMALLEST_DEVIATION)
    return centered.view(-1)


def informative_groups(rewards: torch.Tensor, group: int) -> torch.Tensor:
    """Whether a group's rewards differ: if they do not, its advantages are zero (DAPO section 3.2).

    rewards float32 [N] -> bool [N / group].
    """
    grouped = rewards.view(-1, group)
    return (grouped != grouped[:, :1]).any(1)


def overlong_penalty(lengths: torch.Tensor, limit: int, buffer: int) -> torch.Tensor:
    """What is added to the reward of a long completion: DAPO's soft overlong punishment (equation 13).

    0 up to limit - buffer tokens, then linearly down to -1 at `limit`, where a completion is cut. lengths int64 [N] ->
    float32 [N]; all 0 without a buffer.
    """
    if buffer == 0:
        return torch.zeros(len(lengths))
    return -((lengths - (limit - buffer)) / buffer).clamp(0, 1).float()


def clipped_surrogate(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """-min(r A, clip(r, 1 - low, 1 + high) A) with r = pi / pi_old, and whether the clip holds (PPO equation 7).

    All float32 [M] -> float32 [M], bool [M]. DAPO's "clip-higher" is low < high. Where the clip holds (r above 1 + high
    with A > 0, below 1 - low with A < 0) the gradient is 0.
    """
    ratio = (logprobs - old_logprobs).exp()
    held = torch.where(advantages > 0, ratio > 1 + high, ratio < 1 - low) & (advantages != 0)
    return -torch.where(held, ratio.clamp(1 - low, 1 + high), ratio) * advantages, held.detach()


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """KL(pi || pi_reference) from sampled tokens, each term at least 0: q / p - log(q / p) - 1 (GRPO equation 4, "k3").

    Both float32 [M], of tokens that pi drew -> float32 [M].
    """
    difference = reference_logprobs - logprobs
    return difference.exp() - difference - 1


def token_rewards(rewards: torch.Tensor, lengths: torch.Tensor, penalties: torch.Tensor) -> torch.Tensor:
    """The reward of each token: minus its penalty, and that of the completion at its last token.

    rewards float32 [N], lengths int64 [N] (all at least 1), penalties float32 [M] -> float32 [M].
    """
    of_tokens = -penalties
    of_tokens[lengths.cumsum(0) - 1] += rewards
    return of_tokens


def generalised_advantages(
    rewards: torch.Tensor, values: torch.Tensor, lengths: torch.Tensor, discount: float, decay: float
) -> torch.Tensor:
    """A_t = sum_k (discount * decay)^k delta_(t+k), with delta_t = r_t + discount V_(t+1) - V_t (GAE equation 16).

    rewards float32 [M], values float32 [M], lengths int64 [N] -> float32 [M]. V is 0 after the last token, whether the
    completion ended by itself or at the length limit: the limit belongs to the task, and the verifier has judged what
    was cut. `decay` is GAE's lambda.
    """
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)  # [N, T], in the order of the flat tokens
    padded = torch.zeros(2, *mask.shape)
    padded[0][mask], padded[1][mask] = rewards, values
    advantages = torch.zeros(mask.shape)
    after, value_after = torch.zeros(len(lengths)), torch.zeros(len(lengths))
    for position in reversed(range(mask.shape[1])):  # beyond its end a row is all zeros, as it must be
        reward, value = padded[:, :, position]
        after = reward + discount * value_after - value + discount * decay * after
        advantages[:, position], value_after = after, value
    return advantages[mask]


def value_loss(values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip: float) -> torch.Tensor:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2: the larger error, so that V moves at most about c.

    All float32 [M] -> float32 [M]. From the PPO authors' implementation (openai/baselines, ppo2).
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2
