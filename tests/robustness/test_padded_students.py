"""Students whose embedding has rows for ids that the tokenizer does not know: such ids do not exist for a policy."""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from effopd.common.registry import load
from effopd.distillation.objective import ScoredBatch, distillation_loss
from effopd.distillation.step import update_policy
from effopd.engines.base import build_engine
from effopd.integrations.gates import ReverseKLGate
from effopd.losses.chunked import chunked_loss
from effopd.models import lm_head as logits_module
from effopd.models.lm_head import Head, KnownTokens, restricted, tokens_of, vocabulary_of
from effopd.specs.engines import EngineSettings, Sampling
from effopd.teachers.scoring import LocalTeacher, WithReference, measure_logprobs, measure_reverse_kl
from effopd.training.trainer import Trainer, TrainerSettings
from objectives import OBJECTIVES, training_of
from tiny_models import byte_tokenizer, make_family, make_model
from vllm_here import needs_vllm

CPU = torch.device("cpu")
ROWS = 30
# What a tokenizer of a model with ROWS rows knows: rows that pad at the end, ids left out between, both, and neither.
KNOWN = {
    "padded": range(20),
    "holes": [i for i in range(ROWS) if i not in (3, 11, 12)],
    "both": [i for i in range(21) if i not in (2, 19)],
    "all": range(ROWS),
    "more": range(ROWS + 5),
}
FAMILIES = ("qwen3", "gemma2")  # the lean decoder; the model's own forward pass, with a soft cap and a tied head
PROMPTS = [[4, 5, 6], [7], [8, 9, 10, 13], [5, 5], [6, 4], [15]]


def tokenizer_of(ids) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "</s>": 1} | {f"t{i}": i for i in ids if i > 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, "<pad>")), pad_token="<pad>", eos_token="</s>"
    )


def student_of(family, seed=0):
    """A model that likes the ids best which no tokenizer here but `all` and `more` knows."""
    model = make_family(family, seed, ROWS)
    with torch.no_grad():
        model.get_output_embeddings().weight[[3, 11, 12, 2, 19, *range(21, ROWS)]] *= 3
    return model


def engine_of(model, tokenizer):
    return build_engine(EngineSettings("transformers"), model, tokenizer, batch_size=4, context=32)


@pytest.mark.parametrize(("known", "temperature"), [*((known, 0.7) for known in KNOWN), ("both", 0.0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_known_ids_are_sampled_with_the_logprobs_that_training_computes(family, known, temperature):
    model, tokenizer = student_of(family), tokenizer_of(KNOWN[known])
    rollouts = engine_of(model, tokenizer).generate(PROMPTS * 4, list(range(24)), Sampling(temperature, 8))
    said = {token for completion in rollouts.completions for token in completion}
    assert said <= set(KNOWN[known])
    assert None not in tokenizer.convert_ids_to_tokens(sorted(said))
    free = measure_logprobs(model, rollouts, pad_id=0, batch_size=5, temperature=temperature or 1.0)
    policy = restricted(model, tokenizer)
    found = measure_logprobs(policy, rollouts, pad_id=0, batch_size=5, temperature=temperature or 1.0)
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(rollouts.logprobs), atol=1e-4)
    assert (np.abs(np.concatenate(free) - np.concatenate(found)).max() > 0.1) == (known not in ("all", "more"))


def by_hand(objective, student, teacher, reference, known, rollouts):
    """The objective over the known ids alone, picked out of the logits; float64, mean over tokens."""
    section = training_of(objective).objective
    known = torch.tensor([i for i in known if i < ROWS])
    total = torch.zeros((), dtype=torch.float64)
    for prompt, completion, old in zip(rollouts.prompts, rollouts.completions, rollouts.logprobs, strict=True):
        tokens = torch.tensor([prompt + completion])
        raw = [of(tokens).logits[0, len(prompt) - 1 : -1].double() for of in (student, teacher, reference)]
        places = torch.tensor([known.tolist().index(token) for token in completion])[:, None]
        ours, theirs, base = (values[:, known].log_softmax(-1) for values in raw)
        if section.support == "full":
            total = total + load("objectives", section.divergence)(ours, theirs.detach()).sum()
            continue
        said = ours.gather(1, places)[:, 0]
        goal = raw[1].log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]  # the teacher is as it is
        base = base.gather(1, places)[:, 0]
        goal = base + section.reward_scale * (goal - base)
        total = total - ((goal - torch.from_numpy(old).double()).detach() * said).sum()
    return total / rollouts.completion_tokens


@pytest.mark.parametrize("positions", [1000, 3])
@pytest.mark.parametrize(
    ("family", "objective"),
    [*(("qwen3", name) for name in OBJECTIVES if "top_k" not in name), ("gemma2", "full"), ("gemma2", "sampled")],
)
def test_losses_and_gradients_are_those_over_the_known_ids(family, objective, positions, monkeypatch):
    known = "both"
    tokenizer = tokenizer_of(KNOWN[known])
    student, base = (restricted(student_of(family, seed), tokenizer) for seed in (0, 2))
    teacher = make_family(family, 1, ROWS + 4)
    rollouts = engine_of(student, tokenizer).generate(PROMPTS, list(range(6)), Sampling(1.0, 5))
    monkeypatch.setattr(logits_module, "LOGITS_AT_ONCE", positions * ROWS)
    training, tokens = training_of(objective, batch_size=10), KnownTokens.of(tokenizer)
    full = training.objective.support == "full"
    scorer = LocalTeacher(teacher, pad_id=0, batch_size=10, hidden_states=full)
    if training.objective.reward_scale != 1:
        scorer = WithReference(scorer, LocalTeacher(base, pad_id=0, batch_size=10))
    head = Head.of(teacher) if full else None
    if head is not None:
        head = Head(head.weight, head.bias, head.cap, tokens)
    micro = ScoredBatch.from_rollouts(rollouts, scorer.score(rollouts), 0, CPU, head)
    loss_of = partial(distillation_loss, training, rollouts.completion_tokens, micro)
    loss, _ = chunked_loss(student, micro.batch, loss_of)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in student.named_parameters()}
    student.zero_grad()
    wanted = by_hand(objective, student, teacher, base, KNOWN[known], rollouts)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=2e-3, atol=2e-5, msg=name)
    if family == "qwen3":
        assert not found["lm_head.weight"][tokens.unknown(ROWS)].any()


@pytest.mark.parametrize(("objective", "known"), [*((name, "both") for name in OBJECTIVES), ("top_k", "padded")])
def test_an_update_agrees_with_the_engine_and_stays_finite(objective, known):
    tokenizer = tokenizer_of(KNOWN[known])
    student = restricted(student_of("qwen3"), tokenizer)
    rollouts = engine_of(student, tokenizer).generate(PROMPTS, list(range(6)), Sampling(1.0, 5))
    training, tokens = training_of(objective, batch_size=3), KnownTokens.of(tokenizer)
    objective = training.objective
    teacher = make_family("qwen3", 1, ROWS + 4)
    scorer = LocalTeacher(
        teacher,
        pad_id=0,
        batch_size=3,
        top_k=4 if objective.support == "top_k" else 0,
        tokens=tokens,
        hidden_states=objective.support == "full",
    )
    if objective.reward_scale != 1:
        scorer = WithReference(
            scorer, LocalTeacher(restricted(student_of("qwen3", 2), tokenizer), pad_id=0, batch_size=3)
        )
    scores = scorer.score(rollouts)
    assert {int(i) for row in scores.top_ids for i in row.flatten()} <= set(KNOWN[known])
    linear = teacher.get_output_embeddings()
    head = Head(linear.weight.detach(), None, None, tokens) if objective.support == "full" else None
    trainer = Trainer(student, TrainerSettings(1e-3, (0.9, 0.99), 0.0, 1.0))
    facts = update_policy(trainer, rollouts, scores, training, 1, 0, head)
    assert all(np.isfinite(value) for value in facts.values())
    assert abs(facts["loss"]) < 100
    assert facts["logprob_difference"] < 1e-4
    assert facts["importance_weight"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("engine", [pytest.param("vllm", marks=needs_vllm("padded engine"))])
@pytest.mark.parametrize("known", ["both", "padded"])
def test_vllm_samples_known_ids_alone_with_the_logprobs_that_training_computes(engine, known, monkeypatch):
    runtime = {"tensor_parallel": 1, "memory_fraction": 0.5, "sleep": True, "max_sequences": 64, "cpu_cache_gb": 0.25}
    monkeypatch.setenv("EFFOPD_RUNTIME", json.dumps({"vllm": runtime}))
    model, tokenizer = make_model(0, ROWS, head_dim=32), tokenizer_of(KNOWN[known])
    with closing(build_engine(EngineSettings(engine), model, tokenizer, batch_size=4, context=32)) as generating:
        for temperature in (0.0, 0.7, 1.0):
            rollouts = generating.generate(PROMPTS * 8, list(range(48)), Sampling(temperature, 8))
            said = {token for completion in rollouts.completions for token in completion}
            assert said <= set(KNOWN[known])
            policy = restricted(model, tokenizer)
            wanted = measure_logprobs(policy, rollouts, pad_id=0, batch_size=8, temperature=temperature or 1.0)
            np.testing.assert_allclose(np.concatenate(rollouts.logprobs), np.concatenate(wanted), atol=1e-3)


@pytest.mark.parametrize("known", KNOWN)
def test_the_reverse_kl_is_that_over_the_known_ids(known):
    tokenizer = tokenizer_of(KNOWN[known])
    student, teacher = restricted(student_of("qwen3"), tokenizer), make_family("qwen3", 1, ROWS + 4)
    rollouts = engine_of(student, tokenizer).generate(PROMPTS, list(range(6)), Sampling(1.0, 5))
    found = np.concatenate(measure_reverse_kl(student, teacher, rollouts, pad_id=0, batch_size=4)).sum()
    training = "full"
    wanted = by_hand(training, student, teacher, student, KNOWN[known], rollouts) * rollouts.completion_tokens
    assert found == pytest.approx(wanted.item(), rel=1e-4)


def test_a_gate_of_the_callback_samples_known_ids_from_a_padded_model():
    tokenizer, model = byte_tokenizer(), make_family("qwen2", 0, 300)
    gate = ReverseKLGate(["1+2=", "3+4="], make_family("qwen2", 1, 258), tokenizer, max_new_tokens=6, examples=2)
    rollouts = gate._sample(model, 1, 2.0)
    assert max(token for completion in rollouts.completions for token in completion) < len(tokenizer)
    assert np.isfinite(gate(model, 1, 2.0).value)
    assert vocabulary_of(model) == 300, "the model of another trainer is left as it is"


def test_what_a_tokenizer_knows():
    tokens = KnownTokens.of(tokenizer_of(KNOWN["both"]))
    assert (tokens.size, tokens.holes) == (21, (2, 19))
    assert tokens.unknown(24) == [2, 19, 21, 22, 23]
    assert tokens.unknown(10) == [2]
    model = make_family("qwen3", 0, ROWS)
    assert vocabulary_of(model) == ROWS
    assert vocabulary_of(restricted(model, tokenizer_of(KNOWN["both"]))) == 21
    assert tokens_of(model) == tokens
    added = byte_tokenizer()
    added.add_tokens(["<new>"])
    assert KnownTokens.of(added).size == len(added)
