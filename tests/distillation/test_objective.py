"""What the student is trained on, against the written-out objective; and what must not change it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import added_entries
import objective_steps
from effopd.common.randomness import epoch_order
from effopd.distillation.objective import ScoredBatch, distillation_loss
from effopd.distillation.step import generate_rollouts, rollout_limit
from effopd.losses import chunked as chunked_loss_module
from effopd.losses.metrics import add_up
from effopd.models import lm_head as logits_module
from effopd.specs.segments import HorizonSettings
from losses_by_hand import by_hand
from objective_steps import loss_and_gradients, step
from objectives import OBJECTIVES, head_of, rollouts_of, scores_of, training_of
from small_engine import PROMPTS, engine_of
from tiny_models import FAMILIES, make_family, make_model


def written_out(model, teacher, objective, rollouts):
    """The same loss, a rollout and a position at a time, over float64 probabilities."""
    section = training_of(objective).objective
    total = torch.zeros((), dtype=torch.float64)
    for prompt, completion, logprobs in zip(rollouts.prompts, rollouts.completions, rollouts.logprobs, strict=True):
        tokens = torch.tensor([prompt + completion])

        logits = [of(tokens).logits[0, len(prompt) - 1 : -1].double() for of in (model, teacher, make_model(2))]
        p, q, base = logits[0].softmax(-1), logits[1].softmax(-1).detach(), logits[2].softmax(-1).detach()
        for position, token in enumerate(completion):
            if section.support == "sampled":
                reward = section.reward_scale * (q[position, token] / base[position, token]).log()
                advantage = reward - float(logprobs[position]) + base[position, token].log()
                total = total - advantage * p[position, token].log()
                continue
            ours, theirs = list(p[position]), list(q[position])
            if section.support == "top_k":
                kept = q[position].topk(4).indices.tolist()
                others = [v for v in range(len(ours)) if v not in kept]
                ours, theirs = (
                    [side[v] for v in kept] + [sum(side[v] for v in others)] for side in (ours, theirs)
                )  # fmt: skip
            total = total + by_hand(section.divergence, ours, theirs)
    return total / rollouts.completion_tokens


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_gradients_equal_the_written_out_objective(objective, model, other_model):
    rollouts = rollouts_of(model, 5)
    loss, gradients, _ = loss_and_gradients(model, other_model, objective, rollouts)
    model.zero_grad()
    wanted = written_out(model, other_model, objective, rollouts)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("positions", [1, 7])
def test_chunks_change_nothing(objective, positions, model, other_model, monkeypatch):
    loss, gradients, sums = loss_and_gradients(model, other_model, objective)
    monkeypatch.setattr(logits_module, "LOGITS_AT_ONCE", positions * 16 + 3)
    rollouts = rollouts_of(model)
    chunked = loss_and_gradients(model, other_model, objective, rollouts)
    assert chunked[0] == pytest.approx(loss, rel=1e-5)
    assert chunked[2] == pytest.approx(sums, rel=1e-5, abs=1e-5)  # engine and trainer differ by rounding alone
    for name, gradient in gradients.items():
        torch.testing.assert_close(chunked[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_change_nothing_with_tied_embeddings_soft_caps_and_experts(family, monkeypatch):
    student, teacher = make_family(family, 0), make_family(family, 1)
    loss, gradients, _ = loss_and_gradients(student, teacher, "full")
    rollouts = rollouts_of(student)
    monkeypatch.setattr(logits_module, "LOGITS_AT_ONCE", 5 * 24)
    chunked = loss_and_gradients(student, teacher, "full", rollouts)
    assert chunked[0] == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(chunked[1][name], gradient, rtol=1e-4, atol=1e-6)
    # and afterwards the model is what it was
    assert student(input_ids=torch.tensor([[2, 3]])).logits.shape == (1, 2, 24)
    assert student.config.final_logit_softcapping == 2.0 if family == "gemma2" else True


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_metrics_add_up_over_chunks_and_are_the_same_when_asked_again(objective, model, other_model):
    training, rollouts = training_of(objective), rollouts_of(model)
    scores, total = scores_of(other_model, rollouts, training), rollouts.completion_tokens
    micro = ScoredBatch.from_rollouts(rollouts, scores, 0, torch.device("cpu"), head_of(other_model, training))
    logits = torch.randn(total, 16, generator=torch.Generator().manual_seed(0))

    def asked(start, stop):
        loss, metrics = distillation_loss(training, total, micro, logits[start:stop], slice(start, stop))
        return loss.item(), {name: value.item() for name, value in metrics.items()}

    loss, metrics = asked(0, total)
    parts = [asked(0, 5), asked(5, 6), asked(6, total)]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-5)
    assert add_up(part for _, part in parts) == pytest.approx(metrics, rel=1e-5, abs=1e-6)
    assert asked(0, total) == (loss, metrics)


def test_chunks_are_really_chunks_and_a_small_batch_is_not_cut(model, other_model, monkeypatch):
    calls = []

    def counted(training, total_tokens, micro, logits, rows):
        calls.append(len(logits))
        return distillation_loss(training, total_tokens, micro, logits, rows)

    monkeypatch.setattr(objective_steps, "distillation_loss", counted)
    rollouts = rollouts_of(model)
    loss_and_gradients(model, other_model, "full", rollouts)
    assert calls == [rollouts.completion_tokens]
    calls.clear()
    monkeypatch.setattr(logits_module, "LOGITS_AT_ONCE", 7 * 16)
    loss_and_gradients(model, other_model, "full", rollouts)
    assert max(calls) == 7
    assert sum(calls) == rollouts.completion_tokens
    monkeypatch.setattr(chunked_loss_module, "HeadAndLoss", None)
    monkeypatch.setattr(logits_module, "LOGITS_AT_ONCE", 2**24)
    loss_and_gradients(model, other_model, "full", rollouts)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "exopd"])
def test_a_student_that_is_its_teacher_learns_nothing(objective, model):
    loss, gradients, sums = loss_and_gradients(model, make_model(0), objective)
    assert max(gradient.abs().max() for gradient in gradients.values()) < 2e-5
    assert sums["reverse_kl"] == pytest.approx(0, abs=1e-3)
    if objective != "sampled":  # whose loss is a surrogate
        assert loss == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("objective", ["sampled", "exopd", "top_k", "full"])
def test_micro_batches_of_any_size_make_the_same_step(objective, model):
    """The loss is a mean over the step's tokens, however its rollouts (of different lengths) are batched."""
    rollouts = rollouts_of(model)
    assert len({len(c) for c in rollouts.completions}) > 2
    whole, weights = step(objective, rollouts, 10)
    facts, others = step(objective, rollouts, 3)
    assert facts == pytest.approx(whole, rel=1e-4, abs=1e-7)
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)


def test_metrics_say_what_they_are_named(model, other_model):
    rollouts = rollouts_of(model)
    facts, _ = step("top_k", rollouts, 4)
    scores = scores_of(other_model, rollouts, training_of("top_k"))
    top = np.exp(np.concatenate(scores.top_logprobs)).sum(1)
    assert facts["teacher_top_mass"] == pytest.approx(top.mean(), rel=1e-5)
    assert 0 < facts["student_top_mass"] < 1
    assert facts["importance_weight"] == pytest.approx(1, abs=1e-5)
    assert facts["importance_clipped"] == 0
    full, _ = step("full", rollouts, 4)
    assert facts["loss"] < full["loss"], "buckets cannot tell distributions apart better than tokens"
    estimate = np.concatenate(rollouts.logprobs) - np.concatenate(scores.logprobs)
    assert facts["reverse_kl"] == pytest.approx(full["reverse_kl"]) == pytest.approx(estimate.mean(), rel=1e-5)


@pytest.mark.parametrize("objective", ["sampled", "top_k", "full"])
def test_importance_weights_correct_sampled_tokens_and_nothing_else(objective, model, other_model):
    """An engine that says its tokens were twice as likely as the trainer finds them."""
    rollouts = rollouts_of(model)
    _, plain, sums = loss_and_gradients(model, other_model, objective, rollouts)
    assert sums["importance_clipped"] == 0
    for row in rollouts.logprobs:
        row += np.log(2, dtype=np.float32)
    _, gradients, sums = loss_and_gradients(model, other_model, objective, rollouts, importance_ratio_cap=0.4)
    assert sums["importance_weight"] == pytest.approx(0.4 * rollouts.completion_tokens, rel=1e-5)
    assert sums["importance_clipped"] == rollouts.completion_tokens
    same = all(torch.equal(gradients[name], gradient) for name, gradient in plain.items())
    assert same == (objective != "sampled")


def test_the_policy_is_the_one_that_was_sampled_from(model, other_model):
    """At another temperature the exact objective is still what the sampled one estimates."""
    rollouts = rollouts_of(model, 10, temperature=0.5)
    _, _, sums = loss_and_gradients(model, other_model, "full", rollouts, temperature=0.5)
    assert sums["importance_weight"] == pytest.approx(rollouts.completion_tokens, rel=1e-4)


def test_the_horizon_grows_to_the_longest_completion():
    def limits(steps, **horizon):
        return [rollout_limit(training_of("sampled", horizon=horizon).horizon, 10, step) for step in steps]

    assert limits(range(1, 4)) == [10, 10, 10]
    assert limits([1, 50], tokens=3) == [3, 3]
    assert limits([1, 2, 3, 4, 5, 6, 99], tokens=2, growth_steps=4) == [2, 4, 6, 8, 10, 10, 10]


@pytest.mark.parametrize(("count", "samples"), [(6, 1), (5, 1), (4, 3)])
def test_steps_go_through_shuffled_epochs_from_their_first_problem_on(model, count, samples):
    """Steps 1, 2, ... take what comes next: in each pass over the problems every one of them once."""
    training = training_of("sampled", prompts_per_step=count, samples_per_prompt=samples, max_new_tokens=1)
    engine, seen, completions = engine_of(model, 4), [], []
    for number in range(1, 13):
        rollouts = generate_rollouts(engine, PROMPTS, training, 3, number)
        assert rollouts.prompts == [PROMPTS[row] for row in rollouts.indices]
        groups = [rollouts.indices[start : start + samples] for start in range(0, count * samples, samples)]
        assert all(len(set(group)) == 1 for group in groups), "answers to one problem stand together"
        seen += [group[0] for group in groups]
        completions.append([completion[0] for completion in rollouts.completions])
    size = len(PROMPTS)
    passes = [seen[start : start + size] for start in range(0, len(seen) - size + 1, size)]
    assert len(passes) >= 2
    assert all(sorted(one) == list(range(size)) for one in passes)
    assert passes[0] != passes[1]
    assert seen == epoch_order(3, "training order", size, 0, len(seen))
    assert len(set(map(tuple, completions))) > 1


def test_rollouts_cut_at_the_horizon_are_prefixes_and_not_finished(model):
    training = training_of("sampled", prompts_per_step=24, horizon={"tokens": 4})
    whole = generate_rollouts(engine_of(model, 4), PROMPTS, replace(training, horizon=HorizonSettings()), 0, 1)
    cut = generate_rollouts(engine_of(model, 4), PROMPTS, training, 0, 1)
    assert max(len(c) for c in whole.completions) > 4
    for long, short, finished in zip(whole.completions, cut.completions, cut.finished, strict=True):
        assert short == long[:4]
        assert finished == (short[-1] == 1)
    assert 0 < sum(cut.finished) < 24
    facts, _ = step("full", cut, 4)
    assert facts["tokens"] == sum(min(4, len(c)) for c in whole.completions)
    assert facts["finished"] == sum(cut.finished) / 24


def test_an_added_objective_that_computes_the_same_gives_the_same_update(model, other_model, monkeypatch):
    loss, gradients, sums = loss_and_gradients(model, other_model, "top_k forward")
    added_entries.add(monkeypatch, "objectives")
    monkeypatch.setitem(OBJECTIVES, "added", {"support": "top_k", "top_k": 4, "divergence": "own_forward_kl"})
    added, same, more = loss_and_gradients(model, other_model, "added")
    assert added == loss
    assert all(torch.equal(same[name], gradient) for name, gradient in gradients.items())
    tokens = rollouts_of(model).completion_tokens
    assert more.pop("own_forward_kl_value") == pytest.approx(loss * tokens)
    assert more == sums


def test_rollouts_and_scores_alone_say_the_sampled_reverse_kl_and_the_reward(model, other_model):
    rollouts = rollouts_of(model)
    for objective in ("sampled", "exopd"):
        scores = scores_of(other_model, rollouts, training_of(objective))
        found = ScoredBatch.from_rollouts(rollouts, scores, 0, model.device).metrics
        pairs = zip(rollouts.logprobs, scores.logprobs, strict=True)
        assert found["reverse_kl"].item() == pytest.approx(sum((own - theirs).sum() for own, theirs in pairs), rel=1e-5)
        if objective == "sampled":
            assert set(found) == {"reverse_kl"}
            continue
        pairs = zip(scores.logprobs, scores.reference_logprobs, strict=True)
        assert found["reward"].item() == pytest.approx(sum((own - base).sum() for own, base in pairs), rel=1e-5)


def test_the_teachers_logits_take_its_hidden_states_and_its_head(model, other_model):
    rollouts, full = rollouts_of(model), training_of("full")
    with_states, without = (scores_of(other_model, rollouts, training_of(name)) for name in ("full", "sampled"))
    head = head_of(other_model, full)
    for scores, given in ((with_states, None), (without, head), (without, None)):
        batch = ScoredBatch.from_rollouts(rollouts, scores, 0, model.device, given)
        assert batch.at(slice(0, 3)).teacher_logits is None
    batch = ScoredBatch.from_rollouts(rollouts, with_states, 0, model.device, head)
    assert batch.at(slice(0, 3)).teacher_logits.shape == (3, other_model.config.vocab_size)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("objective", ["sampled", "top_k", "full"])
def test_metrics_compare_the_policy_at_its_temperature_with_the_engine(objective, temperature, model, other_model):
    """By hand, one rollout at a time; the engine is made to say other numbers."""
    rollouts = rollouts_of(model, 6, temperature)
    for row in rollouts.logprobs:
        row -= np.float32(0.25)
    _, _, sums = loss_and_gradients(model, other_model, objective, rollouts, temperature=temperature)
    scores = scores_of(other_model, rollouts, training_of(objective))
    difference = weight = mass = 0.0
    for row, (prompt, completion) in enumerate(zip(rollouts.prompts, rollouts.completions, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        policy = (logits / temperature).log_softmax(-1)
        ratios = policy[range(len(completion)), completion] - torch.from_numpy(rollouts.logprobs[row])
        difference += ratios.abs().sum().item()
        weight += ratios.exp().sum().item()
        if objective == "top_k":
            mass += policy.exp().gather(-1, torch.from_numpy(scores.top_ids[row]).long()).sum().item()
    assert sums["logprob_difference"] == pytest.approx(difference, rel=1e-3)
    assert sums["importance_weight"] == pytest.approx(weight, rel=1e-3)
    assert sums.get("student_top_mass", 0) == pytest.approx(mass, rel=1e-4)


def test_an_added_objective_is_given_its_options(model, other_model, monkeypatch):
    added_entries.add(monkeypatch, "objectives")
    found = []
    for scale in (1.0, 3.0):
        section = {"support": "top_k", "top_k": 4, "divergence": "scaled_kl", "scaled_kl": {"scale": scale}}
        monkeypatch.setitem(OBJECTIVES, "added", section)
        found.append(loss_and_gradients(model, other_model, "added")[0])
    assert found[1] == pytest.approx(3 * found[0])
