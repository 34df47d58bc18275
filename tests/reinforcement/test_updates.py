"""Updates of reinforcement learning, written out token by token at a temperature that is not 1."""

import pytest
import torch

from effopd.models.models import weights_of
from effopd.reinforcement.updates import Updates
from rl_setup import Setup
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
