"""Updates of reinforcement learning, written out token by token at a temperature that is not 1."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from effopd.models.models import weights_of
from effopd.reinforcement.updates import RewardedBatch, Updates, _moments
from rl_setup import FirstTokenTask, Setup
from tiny_models import make_model

TEMPERATURE = 0.7
WAYS = {
    "one update": ("grpo", {}),
    "one update with a penalty": ("grpo", {"kl_coefficient": 0.3}),
    "scaled": ("grpo", {"scale_rewards": True}),
    "clipped with a penalty": ("grpo_clipped", {}),
    "dapo": ("dapo", {"overlong_penalty": 0.5}),
}


def logprobs_of(model, prompt, completion, temperature=TEMPERATURE):
    """Of a completion's tokens at a temperature: nothing padded, nothing in chunks."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double() / temperature
    return logits.log_softmax(-1)[torch.arange(len(completion)), completion]


def advantages_of(groups, settings):
    """One number for each rollout: its reward less its group's mean, by plain arithmetic."""
    rewards = []
    for completion, reward in zip(groups.rollouts.completions, groups.rewards.tolist(), strict=True):
        if buffer := settings.overlong_buffer:
            over = (len(completion) - (settings.max_new_tokens - buffer)) / buffer
            reward -= settings.overlong_penalty * min(max(over, 0.0), 1.0)
        rewards.append(reward)
    found = []
    for start in range(0, len(rewards), groups.size):
        group = rewards[start : start + groups.size]
        mean = sum(group) / len(group)
        deviation = (sum((r - mean) ** 2 for r in group) / (len(group) - 1)) ** 0.5
        scaled = settings.scale_rewards and deviation > 0
        found += [(r - mean) / (deviation + 1e-6) if scaled else r - mean for r in group]
    return found


def written_out(setup, groups, old, low, high):
    """The loss of GRPO or DAPO, one token at a time; `old` is the policy that was sampled from."""
    settings, total = setup.settings, torch.zeros((), dtype=torch.float64)
    rollouts = groups.rollouts
    pairs = zip(rollouts.prompts, rollouts.completions, advantages_of(groups, settings), strict=True)
    for prompt, completion, advantage in pairs:
        now = logprobs_of(setup.model, prompt, completion)
        with torch.no_grad():
            then, reference = (logprobs_of(model, prompt, completion) for model in (old, setup.reference))
        for position in range(len(completion)):
            ratio = (now[position] - then[position]).exp()
            if setup.updates.single:
                total = total - advantage * now[position]
            else:
                total = total - min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
            lead = (reference[position] - now[position]).exp()
            total = total + settings.kl_coefficient * (lead - lead.log() - 1)
    return total / rollouts.completion_tokens


@pytest.mark.parametrize("case", WAYS)
def test_loss_and_gradients_equal_the_written_out_objective(case, tokenizer):
    """The policy is the one that was sampled from, at its temperature, everywhere that log-probabilities appear."""
    way, changes = WAYS[case]
    setup = Setup(way, tokenizer, temperature=TEMPERATURE, **changes)
    groups = setup.source.groups(1, range(4))
    micros = setup.updates._prepare(groups)
    old = make_model(0, vocabulary=len(tokenizer))
    old.load_state_dict(setup.model.state_dict())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that ratios differ from 1, some of them beyond the clip
        for parameter in setup.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    setup.model.zero_grad()
    loss = sum(setup.updates._loss(setup.model, micro, groups.rollouts.completion_tokens)[0] for micro in micros)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in setup.model.named_parameters()}
    setup.model.zero_grad()
    wanted = written_out(setup, groups, old, setup.settings.clip_low, setup.settings.clip_high)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-5)
    for name, parameter in setup.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-3, atol=2e-5, msg=f"{case}: {name}")


@pytest.mark.parametrize("way", ["grpo_clipped", "ppo"])
def test_metrics_are_means_over_the_tokens_that_they_are_named_after(way, tokenizer):
    """With three epochs that change nothing: what is measured before the first update counts once, not three times."""
    setup = Setup(way, tokenizer, temperature=TEMPERATURE, epochs=3, minibatches=2, clip_low=0.1, clip_high=0.1)
    parts = [setup.source.groups(1, range(0, 2)), setup.source.groups(1, range(2, 4))]
    sampled_from = Setup(way, tokenizer).model
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sampled_from.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    updates = Updates(setup.settings, sampled_from, setup.reference, 0, torch.device("cpu"))
    before = weights_of(setup.model)
    facts = updates(setup.trainer, parts, 0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(setup.model).items())
    entropy, divergence, held, tokens = 0.0, 0.0, 0, 0
    micros = [micro for part in parts for micro in updates._prepare(part)]
    if way == "ppo":
        updates._whiten(setup.trainer, micros)
    advantages = torch.cat([micro.advantages for micro in micros])
    for rollouts in (part.rollouts for part in parts):
        entropy -= sum(float(row.sum()) for row in rollouts.logprobs)
        for prompt, completion in zip(rollouts.prompts, rollouts.completions, strict=True):
            with torch.no_grad():
                then, reference, now = (
                    logprobs_of(model, prompt, completion) for model in (sampled_from, setup.reference, setup.model)
                )
            divergence += ((reference - then).exp() - (reference - then) - 1).sum().item()
            for ratio in (now - then).exp().tolist():
                held += ratio > 1.1 if advantages[tokens] > 0 else advantages[tokens] < 0 and ratio < 0.9
                tokens += 1
    assert facts["trained_tokens"] == 3 * tokens
    assert facts["entropy"] == pytest.approx(entropy / tokens, rel=1e-5)
    assert facts["kl"] == pytest.approx(divergence / tokens, rel=1e-4)
    assert facts["clip_share"] == pytest.approx(float(held) / tokens)
    assert 0 < facts["clip_share"] < 1
    if way == "ppo":  # a new head says 0
        errors = 0.0
        for micro in micros:
            for old, target in zip(micro.old_values.tolist(), micro.returns.tolist(), strict=True):
                clipped = old + min(max(0.0 - old, -setup.settings.value_clip), setup.settings.value_clip)
                errors += max(target**2, (clipped - target) ** 2) / 2
        assert facts["value_loss"] == pytest.approx(errors / tokens, rel=1e-4)


def test_loss_and_gradients_of_ppo_equal_the_written_out_objective(tokenizer):
    """Policy and value head together: each a mean over the tokens of the minibatch."""
    setup = Setup("ppo", tokenizer, temperature=TEMPERATURE, value_coefficient=0.3, value_clip=0.05)
    settings = setup.settings
    torch.nn.init.normal_(setup.model.value_head.weight, std=0.1)
    groups = setup.source.groups(1, range(2))
    (micro,) = setup.updates._prepare(groups)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in setup.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    total = groups.rollouts.completion_tokens + 5  # as if another micro-batch had the other tokens
    setup.model.zero_grad()
    loss, _ = setup.updates._loss(setup.model, micro, total)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in setup.model.named_parameters()}
    setup.model.zero_grad()
    wanted, place, moved = torch.zeros((), dtype=torch.float64), 0, 0
    for prompt, completion in zip(groups.rollouts.prompts, groups.rollouts.completions, strict=True):
        now = logprobs_of(setup.model, prompt, completion)
        states = setup.model.base_model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
        values = setup.model.value_head(states)[len(prompt) - 1 : -1].double()
        for position in range(len(completion)):
            advantage, then = micro.advantages[place].item(), micro.old_logprobs[place].item()
            old, target = micro.old_values[place].item(), micro.returns[place].item()
            ratio = (now[position] - then).exp()
            low, high = 1 - settings.clip_low, 1 + settings.clip_high
            wanted = wanted - min(ratio * advantage, ratio.clamp(low, high) * advantage) / total
            clipped = old + (values[position] - old).clamp(-0.05, 0.05)
            error = max((values[position] - target) ** 2, (clipped - target) ** 2) / 2
            wanted = wanted + 0.3 * error / total
            place, moved = place + 1, moved + (abs(values[position].item() - old) > 0.05)
    assert 0 < moved < place, "values move beyond the clip everywhere or nowhere: the test proves less"
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-3, abs=1e-5)
    for name, parameter in setup.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-3, atol=2e-5, msg=name)


def test_loss_and_gradient_norm_are_means_over_the_updates(tokenizer):
    """With epochs that change nothing, each minibatch counts alike, however many tokens it has."""
    setup = Setup("grpo_clipped", tokenizer, temperature=TEMPERATURE, epochs=2, gradient_clipping=0.0)
    parts = [setup.source.groups(1, range(0, 1)), setup.source.groups(1, range(1, 4))]
    facts = setup.updates(setup.trainer, parts, 0.0)
    losses, norms = [], []
    for part in parts:
        setup.model.zero_grad()
        loss = written_out(setup, part, setup.model, setup.settings.clip_low, setup.settings.clip_high)
        loss.backward()
        losses.append(loss.item())
        norms.append(math.sqrt(sum(parameter.grad.double().square().sum() for parameter in setup.model.parameters())))
    assert facts["loss"] == pytest.approx(sum(losses) / 2, rel=1e-3, abs=1e-5)
    assert facts["gradient_norm"] == pytest.approx(sum(norms) / 2, rel=1e-3)


@pytest.mark.parametrize(("epochs", "minibatches"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_one_update_alone_has_no_ratios_and_no_clip(tokenizer, epochs, minibatches):
    """Its policy's log-probabilities are the engine's; with several updates they are the trainer's own."""
    setup = Setup("grpo", tokenizer, epochs=epochs, minibatches=minibatches, clip_low=0.1, clip_high=0.1)
    groups = setup.source.groups(1, range(2))
    for row in groups.rollouts.logprobs:
        row -= 1.0  # an engine of its own has others than the trainer
    (micro,) = setup.updates._prepare(groups)
    assert torch.equal(micro.old_logprobs, micro.rollout_logprobs) == (epochs * minibatches == 1)
    facts = setup.updates(setup.trainer, [groups.take([position]) for position in range(minibatches)], 0.0)
    assert ("clip_share" in facts) == (epochs * minibatches > 1)


@pytest.mark.parametrize("way", ["grpo", "grpo_clipped", "dapo", "ppo"])
@pytest.mark.parametrize("refers", [True, False])
def test_a_rank_without_groups_adds_up_the_same_numbers_in_the_same_order(way, refers, tokenizer, monkeypatch):
    """What it lacks is 0, and the other ranks, which wait for it, add theirs."""
    setup = Setup(way, tokenizer)
    if not refers:
        setup.updates.reference = None
        setup.updates.settings = replace(setup.settings, kl_coefficient=0.0)
    groups = setup.source.groups(1, range(2))
    asked = []
    monkeypatch.setattr(setup.trainer, "sum_over_ranks", lambda value: (asked.append(value), value + 8.0)[1])
    facts = setup.updates(setup.trainer, [groups], 0.0)
    wanted = ["kl"] * refers + ["entropy"] + ["clip_share"] * (way != "grpo") + ["value_loss"] * (way == "ppo")
    explained = ["explained_variance"] * (way == "ppo")
    assert list(facts) == ["loss", "gradient_norm", *wanted, *explained, "trained_tokens"]
    assert list(setup.updates._zeros()) == wanted
    if way == "ppo":  # which drops no groups: each rank has some
        return
    of_one = len(asked)
    asked.clear()
    idle = setup.updates(setup.trainer, [groups.take([])], 0.0)
    assert list(idle) == list(facts)
    assert asked == [0.0] * of_one


@pytest.mark.parametrize("way", ["grpo", "ppo"])
def test_every_parameter_has_a_part_in_an_update_without_groups(way, tokenizer):
    """Else ranks that gather and reduce parameter by parameter (ZeRO 2 and 3) would wait for each other."""
    setup = Setup(way, tokenizer, epochs=1)
    groups = setup.source.groups(1, range(2))
    reached = Counter()
    for name, parameter in setup.model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: reached.update([name]))
    setup.updates(setup.trainer, [groups, groups.take([])], 0.0)
    assert reached == {name: len(setup.updates._prepare(groups)) + 1 for name, _ in setup.model.named_parameters()}


@pytest.mark.parametrize(("changes", "sizes"), [({}, [8]), ({"micro_batch": 3}, [3, 3, 2])])
def test_a_micro_batch_holds_as_many_rollouts_as_it_may_and_all_by_default(changes, sizes, tokenizer):
    setup = Setup("grpo", tokenizer, **changes)
    micros = setup.updates._prepare(setup.source.groups(1, range(2)))
    assert [len(micro.lengths) for micro in micros] == sizes


def of_advantages(advantages, returns):
    """A micro-batch of which only these are known."""
    nothing = torch.zeros(len(advantages))
    return RewardedBatch(
        None, torch.tensor([len(advantages)]), nothing, nothing, advantages=advantages, returns=returns
    )  # fmt: skip


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_whitened_advantages_have_mean_zero_and_deviation_one_over_all_micro_batches(tokenizer, size):
    setup = Setup("ppo", tokenizer)
    generator = torch.Generator().manual_seed(0)
    advantages, returns = (size * (torch.randn(9, generator=generator) + 3) for _ in range(2))
    micros = [of_advantages(advantages[rows], returns[rows]) for rows in (slice(0, 2), slice(2, 9))]
    facts = setup.updates._whiten(setup.trainer, micros)
    found = torch.cat([micro.advantages for micro in micros]).double().numpy()
    wanted = (advantages.double().numpy() - advantages.double().numpy().mean()) / advantages.double().numpy().std()
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    explained = 1 - np.var(advantages.double().numpy()) / np.var(returns.double().numpy())
    assert facts == {"explained_variance": pytest.approx(explained)}


def test_advantages_that_are_all_alike_are_whitened_to_zero(tokenizer):
    """Rounding alone, which no advantage is, is not scaled up."""
    setup = Setup("ppo", tokenizer)
    micros = [of_advantages(torch.full((count,), 0.1), torch.full((count,), 0.1)) for count in (3, 4)]
    setup.updates._whiten(setup.trainer, micros)
    for micro in micros:
        assert micro.advantages.abs().max() < 1e-6


def test_a_deviation_as_small_as_rounding_is_not_blown_up_to_one(tokenizer):
    setup = Setup("ppo", tokenizer)
    micro = of_advantages(torch.tensor([1e-8, -1e-8]), torch.tensor([1.0, 0.0]))
    setup.updates._whiten(setup.trainer, [micro])
    assert micro.advantages.tolist() == pytest.approx([0.5, -0.5], rel=1e-4)


def test_values_explain_nothing_of_returns_that_are_all_alike(tokenizer):
    """Nothing is right, the new head says 0, and the policy stays where it is."""
    setup = Setup("ppo", tokenizer, task=FirstTokenTask(right=""), kl_coefficient=0, weight_decay=0.0)
    before = weights_of(setup.model)
    facts = setup.step(1)
    assert facts["explained_variance"] == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(setup.model).items())


def test_moments_are_those_of_the_values_of_all_ranks():
    mine, theirs = np.array([1.0, 4.0, -2.0]), np.array([7.0, 0.5])
    everything = np.concatenate([mine, theirs])
    others = iter([len(theirs), theirs.sum(), np.square(theirs - everything.mean()).sum()])
    trainer = SimpleNamespace(sum_over_ranks=lambda value: value + next(others))
    assert _moments(trainer, mine) == pytest.approx((everything.mean(), everything.var()))
