"""Losses against brute force."""

import pytest
import torch

from effopd.losses import (
    distillation_advantages,
    group_advantages,
    policy_gradient_loss,
    reverse_kl,
    token_logprobs,
    truncated_importance_weights,
)


def softmax(logits):
    weights = [x.exp() for x in logits.double()]
    return [w / sum(weights) for w in weights]


def test_token_logprobs_and_reverse_kl_equal_the_written_out_sums():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    tokens = torch.tensor([0, 4, 2, 2])
    for row in range(4):
        p, q = softmax(student[row]), softmax(teacher[row])
        assert token_logprobs(student, tokens)[row].item() == pytest.approx(p[tokens[row]].log().item(), abs=1e-6)
        by_hand = sum((p[v] * (p[v] / q[v]).log()).item() for v in range(5))
        assert reverse_kl(student, teacher)[row].item() == pytest.approx(by_hand, abs=1e-6)


def test_reverse_kl_is_zero_for_equal_models_and_survives_large_logits():
    logits = torch.tensor([[1e4, 0.0, -1e4], [3.0, 3.0, 3.0]])
    assert torch.equal(reverse_kl(logits, logits + 7), torch.zeros(2))
    assert torch.isfinite(reverse_kl(logits, logits.flip(-1))).all()


def test_the_sampled_policy_gradient_is_unbiased_for_the_reverse_kl():
    """Averaged over every token with its probability, the gradient is that of the exact KL (paper section 1)."""
    torch.manual_seed(1)
    student = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, 6, dtype=torch.float64)
    exact = (student.softmax(-1) * (student.log_softmax(-1) - teacher.log_softmax(-1))).sum()
    (wanted,) = torch.autograd.grad(exact, student)
    expected = torch.zeros_like(wanted)
    for token in range(6):
        logprob = student.log_softmax(-1)[:, token]
        advantage = distillation_advantages(teacher.log_softmax(-1)[:, token], logprob)
        loss = policy_gradient_loss(logprob, advantage, torch.ones(1), 1)
        (gradient,) = torch.autograd.grad(loss, student)
        expected += student.softmax(-1)[0, token].detach() * gradient
    torch.testing.assert_close(expected, wanted)


def test_importance_weights_are_ratios_cut_at_the_limit():
    trainer = torch.tensor([0.0, 1.0, 5.0], requires_grad=True)
    weights = truncated_importance_weights(trainer, torch.zeros(3), 5.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 5.0]) * torch.tensor([1.0, 2.718281828, 1.0]))
    assert not weights.requires_grad


def test_group_advantages_are_centred_within_their_group():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(group_advantages(rewards, 3), torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="6 rewards do not divide into groups of 4"):
        group_advantages(rewards, 4)
