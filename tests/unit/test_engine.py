"""The transformers engine against transformers' own generation, and the invariances that reproducibility rests on."""

import numpy as np
import pytest
import torch
from tiny_models import make_model

from effopd.engines.base import Sampling
from effopd.engines.transformers_engine import COMPACT_BELOW, TransformersEngine
from effopd.models import weights_of
from effopd.randomness import seed_of
from effopd.scoring import LocalTeacher, measure_reverse_kl

PROMPTS = [[5, 8, 3], [9, 4, 7, 12, 6, 3, 11], [2, 2], [13, 5, 8, 3, 9], [6], [7, 7, 7, 7]] * 4
SEEDS = [seed_of("test", i) for i in range(len(PROMPTS))]


def engine_of(model, batch_size=8):
    return TransformersEngine(model, eos_id=1, pad_id=0, batch_size=batch_size)


def test_greedy_output_equals_generate_token_by_token(model):
    rollouts = engine_of(model).generate(PROMPTS[:6], SEEDS[:6], Sampling(0.0, 12))
    for prompt, completion in zip(rollouts.prompts, rollouts.completions, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False
        )[0, len(prompt) :]
        assert completion == wanted.tolist()


def test_logprobs_are_the_trainers_own(model):
    rollouts = engine_of(model).generate(PROMPTS, SEEDS, Sampling(1.0, 20))
    scored = LocalTeacher(model, pad_id=0, batch_size=5).score(rollouts)
    for mine, theirs in zip(rollouts.logprobs, scored.logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_a_completion_does_not_depend_on_what_it_is_batched_with(model):
    together = engine_of(model, batch_size=24).generate(PROMPTS, SEEDS, Sampling(1.0, 16))
    for row in (0, 1, 4, 23):
        alone = engine_of(model).generate([PROMPTS[row]], [SEEDS[row]], Sampling(1.0, 16))
        assert alone.completions[0] == together.completions[row]
        np.testing.assert_allclose(alone.logprobs[0], together.logprobs[row], atol=2e-5)


def test_shards_of_whole_batches_are_bitwise_equal(model):
    whole = engine_of(model, 8).generate(PROMPTS, SEEDS, Sampling(1.0, 16))
    for start in (0, 8, 16):
        shard = engine_of(model, 8).generate(PROMPTS[start : start + 8], SEEDS[start : start + 8], Sampling(1.0, 16))
        assert shard.completions == whole.completions[start : start + 8]
        for mine, theirs in zip(shard.logprobs, whole.logprobs[start : start + 8], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_compaction_happens_and_changes_no_token(model, monkeypatch):
    from transformers import DynamicCache

    calls = []
    original = DynamicCache.batch_select_indices
    monkeypatch.setattr(
        DynamicCache, "batch_select_indices", lambda self, keep: (calls.append(len(keep)), original(self, keep))[1]
    )
    with_compaction = engine_of(model, 24).generate(PROMPTS, SEEDS, Sampling(3.0, 50))
    assert calls, "no batch shrank: the test proves nothing"
    monkeypatch.setattr("effopd.engines.transformers_engine.COMPACT_BELOW", -1.0)
    assert COMPACT_BELOW > 0
    without = engine_of(model, 24).generate(PROMPTS, SEEDS, Sampling(3.0, 50))
    assert with_compaction.completions == without.completions


def test_completions_end_with_eos_or_at_the_limit(model):
    rollouts = engine_of(model).generate(PROMPTS, SEEDS, Sampling(1.0, 6))
    assert any(rollouts.finished)
    assert not all(rollouts.finished)
    for completion, finished in zip(rollouts.completions, rollouts.finished, strict=True):
        assert (completion[-1] == 1) == finished
        assert 1 not in completion[:-1]
        assert finished or len(completion) == 6


def test_tokens_are_sampled_from_the_models_distribution(model):
    count = 4000
    seeds = [seed_of("frequency", i) for i in range(count)]
    rollouts = engine_of(model, 500).generate([[5, 8, 3]] * count, seeds, Sampling(1.0, 1))
    with torch.no_grad():
        wanted = model(torch.tensor([[5, 8, 3]])).logits[0, -1].softmax(-1).numpy()
    found = np.bincount([c[0] for c in rollouts.completions], minlength=16) / count
    assert np.abs(found - wanted).max() < 4 * np.sqrt(0.25 / count)


def test_weights_are_replaced_in_place(model, other_model):
    engine = engine_of(model)
    engine.load_weights(weights_of(other_model))
    wanted = engine_of(other_model).generate(PROMPTS, SEEDS, Sampling(1.0, 8))
    assert engine.generate(PROMPTS, SEEDS, Sampling(1.0, 8)).completions == wanted.completions


def test_the_reverse_kl_of_a_model_to_itself_is_zero_and_its_sampled_estimate_agrees(model, other_model):
    seeds = [seed_of("kl", i) for i in range(600)]
    rollouts = engine_of(model, 200).generate([[5, 8, 3]] * 600, seeds, Sampling(1.0, 10))
    itself = measure_reverse_kl(model, make_model(0), rollouts, pad_id=0, batch_size=64)
    assert all((row == 0).all() for row in itself)
    exact = measure_reverse_kl(model, other_model, rollouts, pad_id=0, batch_size=64)
    scores = LocalTeacher(other_model, pad_id=0, batch_size=64).score(rollouts)
    sampled = np.concatenate(rollouts.logprobs) - np.concatenate(scores.logprobs)
    error = sampled.std() / np.sqrt(len(sampled))
    assert abs(sampled.mean() - np.concatenate(exact).mean()) < 4 * error


def test_bad_sampling_is_refused():
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        Sampling(-1.0, 4)
