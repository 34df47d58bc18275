"""Losses against brute force."""

import pytest
import torch

from effopd.common.registry import BUILT_IN, load
from effopd.losses.divergences import (
    distillation_advantages,
    extrapolated_logprobs,
    negative_log_likelihood,
    policy_gradient_loss,
    reverse_kl,
    token_logprobs,
    top_k_with_tail,
    truncated_importance_weights,
    vocabulary_logprobs,
    with_tail,
)
from losses_by_hand import by_hand

DIVERGENCES = {name: load("objectives", name) for name in BUILT_IN["objectives"]}


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


def test_the_language_modelling_loss_is_the_mean_of_what_tokens_lack():
    logprobs = torch.tensor([-1.0, -2.5, -0.5])
    assert negative_log_likelihood(logprobs, 3).item() == pytest.approx(4 / 3)
    assert negative_log_likelihood(logprobs[:2], 3).item() == pytest.approx(3.5 / 3), "a share of a larger batch"
    torch.testing.assert_close(
        policy_gradient_loss(logprobs, torch.tensor([1.0, -2.0, 3.0]), torch.tensor([1.0, 0.5, 2.0]), 4),
        torch.tensor(-(-1.0 + 2.5 - 3.0) / 4),
    )


def test_what_top_tokens_leave_is_their_tail_and_never_nothing():
    top = torch.tensor([[0.5, 0.25], [0.75, 0.25], [0.9, 0.1 - 1e-9]]).log()
    found = with_tail(top)
    torch.testing.assert_close(found[0].exp(), torch.tensor([0.5, 0.25, 0.25]))
    torch.testing.assert_close(found[1:, 2].exp(), torch.full((2,), 1e-6), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(3))


def test_importance_weights_are_ratios_cut_at_the_limit():
    trainer = torch.tensor([0.0, 1.0, 5.0], requires_grad=True)
    weights = truncated_importance_weights(trainer, torch.zeros(3), 5.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.0, 5.0]) * torch.tensor([1.0, 2.718281828, 1.0]))
    assert not weights.requires_grad


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences_and_their_gradients_equal_the_written_out_sums(divergence):
    torch.manual_seed(2)
    student, teacher = torch.randn(3, 6, requires_grad=True), torch.randn(3, 6)
    found = DIVERGENCES[divergence](*vocabulary_logprobs(student, teacher))
    wanted = torch.stack([by_hand(divergence, softmax(student[row]), softmax(teacher[row])) for row in range(3)])
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), student, retain_graph=True)
    (by_autograd,) = torch.autograd.grad(wanted.sum(), student)
    torch.testing.assert_close(gradient, by_autograd, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences_over_the_top_tokens_and_a_tail_equal_those_of_the_summed_up_distributions(divergence):
    """Their gradients too: without the tail bucket, or with one that has no gradient, they would be wrong."""
    torch.manual_seed(3)
    student, teacher = torch.randn(4, 7, requires_grad=True), torch.randn(4, 7)
    top = teacher.log_softmax(-1).topk(3, -1)
    found = DIVERGENCES[divergence](top_k_with_tail(student, top.indices), with_tail(top.values))

    def buckets(logits, ids):
        probabilities = softmax(logits)
        kept = [probabilities[i] for i in ids.tolist()]
        return [*kept, sum(p for i, p in enumerate(probabilities) if i not in ids.tolist())]

    wanted = torch.stack(
        [
            by_hand(divergence, buckets(student[r], top.indices[r]), buckets(teacher[r], top.indices[r]))
            for r in range(4)
        ]
    )
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), student, retain_graph=True)
    (by_autograd,) = torch.autograd.grad(wanted.sum(), student)
    torch.testing.assert_close(gradient, by_autograd, atol=1e-6, rtol=1e-4)
    full = DIVERGENCES[divergence](*vocabulary_logprobs(student, teacher))
    assert (found <= full).all(), "fewer buckets can tell two distributions apart no better"


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergences_of_equal_distributions_are_zero_and_so_is_their_gradient(divergence):
    torch.manual_seed(4)
    logits = (5 * torch.randn(8, 40)).requires_grad_()
    top = logits.detach().log_softmax(-1).topk(8, -1)
    for student, teacher in (
        vocabulary_logprobs(logits, logits.detach()),
        (top_k_with_tail(logits, top.indices), with_tail(top.values)),
    ):
        divergences = DIVERGENCES[divergence](student, teacher)
        assert divergences.abs().max() < 1e-6
        (gradient,) = torch.autograd.grad(divergences.sum(), logits)
        assert gradient.abs().max() < 1e-6


def test_the_top_tokens_alone_would_reward_moving_mass_out_of_them():
    """The fault that the tail bucket is there for: at student = teacher the gradient must vanish."""
    torch.manual_seed(5)
    logits = torch.randn(1, 10, requires_grad=True)
    ids = logits.detach().topk(4, -1).indices
    student = logits.log_softmax(-1).gather(-1, ids)
    (wrong,) = torch.autograd.grad((student.exp() * (student - student.detach())).sum(), logits)
    assert wrong.abs().max() > 1e-2
    (right,) = torch.autograd.grad(
        DIVERGENCES["reverse_kl"](top_k_with_tail(logits, ids), top_k_with_tail(logits.detach(), ids)).sum(), logits
    )
    assert right.abs().max() < 1e-6


def test_extreme_distributions_give_finite_divergences_and_gradients():
    logits = torch.tensor([[200.0, 0.0, -200.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[-200.0, 200.0, 0.0, 1.0, 2.0]])
    top = teacher.log_softmax(-1).topk(2, -1)
    assert with_tail(top.values).exp().sum().item() == pytest.approx(1, abs=1e-6)
    for divergence in DIVERGENCES.values():
        for pair in (
            vocabulary_logprobs(logits, teacher),
            (top_k_with_tail(logits, top.indices), with_tail(top.values)),
        ):
            value = divergence(*pair)
            (gradient,) = torch.autograd.grad(value.sum(), logits)
            assert torch.isfinite(value).all()
            assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("padded", ["student", "teacher", "both"])
def test_rows_that_pad_a_models_vocabulary_do_not_count(padded):
    torch.manual_seed(6)
    student, teacher = torch.randn(3, 6), torch.randn(3, 6)
    wide = {
        "student": (torch.cat([student, torch.randn(3, 2)], -1), teacher),
        "teacher": (student, torch.cat([teacher, torch.randn(3, 2)], -1)),
        "both": (torch.cat([student, torch.randn(3, 1)], -1), torch.cat([teacher, torch.randn(3, 4)], -1)),
    }[padded]
    if padded == "both":  # one token more is a token of both
        student, teacher = wide[0], wide[1][:, :7]
    for found, wanted in zip(vocabulary_logprobs(*wide), (student, teacher), strict=True):
        assert torch.equal(found, wanted.log_softmax(-1))
    assert torch.equal(reverse_kl(*wide), reverse_kl(student, teacher))


def test_an_extrapolated_teacher_gives_the_advantage_of_exopd():
    torch.manual_seed(7)
    teacher, base, student = torch.randn(3, 5).unbind()
    scale = 1.25
    found = distillation_advantages(extrapolated_logprobs(teacher, base, scale), student)
    torch.testing.assert_close(found, scale * (teacher - base) - (student - base))
    torch.testing.assert_close(extrapolated_logprobs(teacher, base, 1.0), teacher)
