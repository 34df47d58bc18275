"""Rewards, advantages and losses of GRPO, DAPO and PPO against brute force."""

import math

import pytest
import torch

from effopd.reinforcement.losses import (
    clipped_surrogate,
    generalised_advantages,
    group_advantages,
    informative_groups,
    kl_estimate,
    overlong_penalty,
    token_rewards,
    value_loss,
)


def test_group_advantages_are_centred_within_their_group():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(group_advantages(rewards, 3), torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="6 rewards do not divide into groups of 4"):
        group_advantages(rewards, 4)


def test_scaled_group_advantages_have_deviation_one_and_are_zero_where_rewards_are_alike():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.5, 0.7, 0.7, 0.7, 0.7])
    found = group_advantages(rewards, 4, scale=True)
    deviation = (sum((x - 0.375) ** 2 for x in (1.0, 0.0, 0.0, 0.5)) / 3) ** 0.5
    wanted = [(x - 0.375) / deviation for x in (1.0, 0.0, 0.0, 0.5)]
    torch.testing.assert_close(found[:4], torch.tensor(wanted), atol=1e-4, rtol=1e-4)
    assert found[4:].tolist() == [0.0] * 4, "rounding of the mean is not scaled up to an advantage"


def test_groups_whose_rewards_are_all_alike_are_not_informative():
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.5, 0.3, 0.3])
    assert informative_groups(rewards, 2).tolist() == [False, False, True, False]
    assert informative_groups(rewards, 4).tolist() == [True, True]


def test_the_overlong_penalty_falls_linearly_in_the_buffer_to_minus_one_where_completions_are_cut():
    lengths = torch.tensor([1, 18, 19, 21, 23, 24])
    wanted = [0.0, 0.0, -1 / 6, -3 / 6, -5 / 6, -1.0]
    torch.testing.assert_close(overlong_penalty(lengths, limit=24, buffer=6), torch.tensor(wanted))
    assert overlong_penalty(lengths, limit=24, buffer=0).tolist() == [0.0] * 6


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28)])
def test_the_clipped_surrogate_is_the_written_out_minimum_and_held_tokens_have_no_gradient(low, high):
    edges = [1 - low - 1e-3, 1 - low + 1e-3, 1.0, 1 + high - 1e-3, 1 + high + 1e-3, 0.3, 3.0]
    ratios = torch.tensor([ratio for ratio in edges for _ in range(3)], dtype=torch.float64)
    advantages = torch.tensor([1.5, -0.5, 0.0] * len(edges), dtype=torch.float64)
    old = torch.linspace(-3, -0.1, len(ratios), dtype=torch.float64)
    logprobs = (old + ratios.log()).requires_grad_()
    found, held = clipped_surrogate(logprobs, old, advantages, low, high)
    wanted, slopes = [], []
    for ratio, advantage in zip(ratios.tolist(), advantages.tolist(), strict=True):
        plain, clipped = ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage
        wanted.append(-min(plain, clipped))
        slopes.append(0.0 if clipped < plain else -ratio * advantage)
    torch.testing.assert_close(found.detach(), torch.tensor(wanted, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.sum(), logprobs)
    torch.testing.assert_close(gradient, torch.tensor(slopes, dtype=torch.float64))
    assert held.tolist() == [slope == 0 and a != 0 for slope, a in zip(slopes, advantages.tolist(), strict=True)]
    assert held.sum() == 4, "above with a positive advantage, below with a negative one"


def test_rewards_that_hardly_differ_are_not_scaled_up_to_a_deviation_of_one():
    found = group_advantages(torch.tensor([0.0, 2e-6]), 2, scale=True)
    torch.testing.assert_close(found, torch.tensor([-1.0, 1.0]) / (2**0.5 + 1), rtol=1e-3, atol=0)


def test_a_buffer_of_one_token_takes_all_of_the_penalty_at_once():
    assert overlong_penalty(torch.tensor([22, 23, 24]), limit=24, buffer=1).tolist() == [0, 0, -1]
    assert overlong_penalty(torch.tensor([25, 40]), limit=24, buffer=4).tolist() == [-1, -1], "and never more"


@pytest.mark.parametrize("advantage", [0.01, 1.0, 7.0])
def test_what_the_clip_holds_depends_on_the_sign_of_the_advantage_alone(advantage):
    ratios, advantages = torch.tensor([3.0, 0.3]).repeat(2), torch.tensor([1.0, 1.0, -1.0, -1.0]) * advantage
    found, held = clipped_surrogate(ratios.log(), torch.zeros(4), advantages, 0.2, 0.4)
    assert held.tolist() == [True, False, False, True]
    torch.testing.assert_close(found, torch.tensor([-1.4, -0.3, 3.0, 0.8]) * advantage)


def test_at_the_edges_of_the_clip_nothing_is_held():
    logprobs, advantages = torch.zeros(2), torch.tensor([1.0, -1.0])
    found, held = clipped_surrogate(logprobs, logprobs, advantages, 0.0, 0.0)
    assert held.tolist() == [False, False]
    assert found.tolist() == [-1.0, 1.0]


def test_the_kl_estimate_is_never_negative_and_its_mean_over_samples_is_the_kl():
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 6, dtype=torch.float64).log_softmax(-1)
    terms = kl_estimate(policy, reference)
    assert (terms >= 0).all()
    exact = sum((p.exp() * (p - q)).item() for p, q in zip(policy, reference, strict=True))
    assert (policy.exp() * terms).sum().item() == pytest.approx(exact)
    assert kl_estimate(policy, policy).abs().max() == 0


def advantages_by_hand(rewards, values, discount, decay):
    """GAE's double sum, of one completion; its last token ends it."""
    last = len(rewards)
    deltas = [rewards[t] + discount * (values[t + 1] if t + 1 < last else 0.0) - values[t] for t in range(last)]
    return [sum((discount * decay) ** (k - t) * deltas[k] for k in range(t, last)) for t in range(last)]


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_generalised_advantages_equal_the_double_sum(discount, decay):
    torch.manual_seed(1)
    lengths = torch.tensor([4, 1, 6, 3])
    rewards, values = torch.randn(2, 14).unbind()
    found = generalised_advantages(rewards, values, lengths, discount, decay)
    start, wanted = 0, []
    for length in lengths.tolist():
        part = slice(start, start + length)
        wanted += advantages_by_hand(rewards[part].tolist(), values[part].tolist(), discount, decay)
        start += length
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)


def test_with_lambda_one_returns_are_the_rewards_to_go_whatever_the_values():
    """So that a completion cut by the length limit (no end-of-sequence token) has no value behind its end."""
    rewards, lengths = torch.tensor([0.0, 0.0, 1.0, 0.0, 0.5]), torch.tensor([3, 2])
    values = torch.tensor([0.3, -2.0, 5.0, 0.1, 7.0])
    returns = generalised_advantages(rewards, values, lengths, 1.0, 1.0) + values
    torch.testing.assert_close(returns, torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5]))


def test_advantages_of_a_completion_do_not_depend_on_what_it_is_batched_with():
    torch.manual_seed(2)
    lengths = torch.tensor([2, 7, 1, 5])
    rewards, values = torch.randn(2, 15).unbind()
    together = generalised_advantages(rewards, values, lengths, 0.97, 0.9)
    alone = [
        generalised_advantages(r, v, torch.tensor([len(r)]), 0.97, 0.9)
        for r, v in zip(rewards.split(lengths.tolist()), values.split(lengths.tolist()), strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_the_reward_is_the_last_tokens_and_penalties_are_each_tokens():
    lengths, penalties = torch.tensor([2, 1, 3]), torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    found = token_rewards(torch.tensor([1.0, 0.0, 0.5]), lengths, penalties)
    torch.testing.assert_close(found, torch.tensor([-0.1, 0.8, -0.3, -0.4, -0.5, -0.1]))
    torch.testing.assert_close(penalties, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))


def test_the_value_loss_is_the_larger_error_and_stops_to_pull_once_a_value_has_moved_by_the_clip():
    old, returns = torch.zeros(5), torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])
    values = torch.tensor([0.1, 0.5, 1.5, -0.5, -0.5], requires_grad=True)
    found = value_loss(values, old, returns, clip=0.2)
    wanted = []
    for value, target in zip(values.tolist(), returns.tolist(), strict=True):
        clipped = min(max(value, -0.2), 0.2)
        wanted.append(max((value - target) ** 2, (clipped - target) ** 2) / 2)
    torch.testing.assert_close(found, torch.tensor(wanted))
    (gradient,) = torch.autograd.grad(found.sum(), values)
    torch.testing.assert_close(gradient, torch.tensor([-0.9, 0.0, 0.0, -1.5, 0.0]))


def test_a_value_is_clipped_around_what_it_was():
    old, values = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0.5, -0.5, 2.1])
    found = value_loss(values, old, torch.zeros(3), clip=0.2)
    torch.testing.assert_close(found, torch.tensor([0.8**2, 0.8**2, 2.1**2]) / 2)


def test_losses_of_parts_add_up_to_the_whole():
    torch.manual_seed(3)
    logprobs, old, advantages = torch.randn(3, 12).unbind()
    whole, _ = clipped_surrogate(logprobs, old, advantages, 0.2, 0.28)
    parts = [
        clipped_surrogate(*(x[rows] for x in (logprobs, old, advantages)), 0.2, 0.28)[0].sum() / 12
        for rows in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    assert sum(parts).item() == pytest.approx((whole.sum() / 12).item(), rel=1e-5)
    assert math.isfinite(whole.sum())
