"""What every rollout engine promises, asked of each: the same greedy tokens, log-probs, ends, seeds and weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from effopd.common.errors import ArtifactError, ConfigError
from effopd.common.randomness import seed_of
from effopd.data.rollouts import Rollouts
from effopd.engines import vllm_engine
from effopd.engines.base import RolloutEngine, build_engine, longest_context
from effopd.engines.vllm_engine import GIB, reason_of, roomy_folder
from effopd.models.models import load_weights_into, weights_of
from effopd.specs.engines import EngineSettings, Sampling
from effopd.tasks.base import build_task
from effopd.teachers.scoring import measure_logprobs
from engine_prompts import LIMIT, PROMPTS, SEEDS
from tiny_models import TASK_SECTION, make_model
from vllm_here import needs_vllm

RUNTIME = {
    "vllm": {"tensor_parallel": 1, "memory_fraction": 0.5, "sleep": True, "max_sequences": 64, "cpu_cache_gb": 0.25}
}


@dataclass
class Subject:
    """An engine, and how to make a model of its shape."""

    engine: RolloutEngine
    model: PreTrainedModel
    make: Callable[[int], PreTrainedModel]
    as_started: Rollouts  # what it generated with the weights that it started with, those of seed 0

    def load(self, seed: int) -> PreTrainedModel:
        """Load the weights of a seed; the model that has them."""
        other = self.make(seed)
        self.engine.load_weights(weights_of(other))
        return other

    def generate(self, temperature: float, seeds: list[int] = SEEDS) -> Rollouts:
        return self.engine.generate(PROMPTS, seeds, Sampling(temperature, LIMIT))


@pytest.fixture(
    scope="module",
    params=[
        "transformers",
        "transformers tied",
        pytest.param("vllm", marks=needs_vllm("engine")),
        pytest.param("vllm tied", marks=needs_vllm("tied engine")),
        pytest.param("vllm parallel", marks=needs_vllm("parallel engine")),  # two processes share each layer
    ],
)
def subject(request) -> Iterator[Subject]:
    name, *variant = request.param.split()
    runtime = {"vllm": {**RUNTIME["vllm"], "tensor_parallel": 2 if "parallel" in variant else 1}}

    def make(seed: int) -> PreTrainedModel:
        return make_model(seed, head_dim=32, tied="tied" in variant)  # vLLM's attention on CPUs has no narrower heads

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFOPD_RUNTIME", json.dumps(runtime))
        model = make(0)
        engine = build_engine(
            EngineSettings(name),
            model,
            build_task(TASK_SECTION).make_tokenizer(),
            batch_size=len(PROMPTS),
            context=longest_context(PROMPTS, LIMIT),
        )
        as_started = engine.generate(PROMPTS, SEEDS, Sampling(1.0, LIMIT))
        yield Subject(engine, model, make, as_started)
        engine.close()


def test_greedy_tokens_are_those_of_transformers_own_generation(subject):
    for seed in (1, 2):
        model = subject.load(seed)
        rollouts = subject.generate(0.0)
        for prompt, completion in zip(rollouts.prompts, rollouts.completions, strict=True):
            wanted = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=LIMIT, do_sample=False
            )
            assert completion == wanted[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_the_trainers_under_the_distribution_sampled_from(subject, temperature):
    model = subject.load(1)
    rollouts = subject.generate(temperature)
    computed = measure_logprobs(model, rollouts, pad_id=0, batch_size=5, temperature=temperature)
    for mine, theirs in zip(rollouts.logprobs, computed, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, atol=1e-3)


def test_greedy_logprobs_are_those_at_temperature_one(subject):
    model = subject.load(1)
    rollouts = subject.generate(0.0)
    computed = measure_logprobs(model, rollouts, pad_id=0, batch_size=5, temperature=1.0)
    np.testing.assert_allclose(np.concatenate(rollouts.logprobs), np.concatenate(computed), atol=1e-3)


def test_new_weights_change_what_is_generated_and_are_those_of_an_engine_that_starts_with_them(subject):
    subject.load(1)
    assert subject.generate(1.0).completions != subject.as_started.completions
    subject.load(0)
    again = subject.generate(1.0)
    assert again.completions == subject.as_started.completions
    np.testing.assert_allclose(np.concatenate(again.logprobs), np.concatenate(subject.as_started.logprobs), atol=1e-5)


def test_an_update_of_the_model_is_taken_up_when_asked_for(subject):
    model = subject.load(0)
    load_weights_into(subject.model, weights_of(subject.make(2)))
    subject.engine.sync_weights()
    synced = subject.generate(0.0)
    subject.load(2)
    assert synced.completions == subject.generate(0.0).completions
    load_weights_into(subject.model, weights_of(model))


def test_seeds_alone_decide_what_is_sampled(subject):
    subject.load(0)
    first = subject.generate(1.0)
    assert subject.generate(1.0).completions == first.completions
    assert subject.generate(1.0, [seed + 1 for seed in SEEDS]).completions != first.completions
    backwards = subject.engine.generate(PROMPTS[::-1], SEEDS[::-1], Sampling(1.0, LIMIT))
    assert backwards.completions[::-1] == first.completions


def test_completions_end_with_eos_or_at_the_limit(subject):
    subject.load(0)
    rollouts = subject.generate(1.0)
    assert any(rollouts.finished)
    assert not all(rollouts.finished)
    for completion, finished in zip(rollouts.completions, rollouts.finished, strict=True):
        assert (completion[-1] == 1) == finished
        assert 1 not in completion[:-1]
        assert finished or len(completion) == LIMIT


def test_tokens_are_sampled_from_the_models_distribution(subject):
    model, count = subject.load(1), 2000
    seeds = [seed_of("frequency", i) for i in range(count)]
    rollouts = subject.engine.generate([[5, 8, 3]] * count, seeds, Sampling(1.0, 1))
    with torch.no_grad():
        wanted = model(torch.tensor([[5, 8, 3]])).logits[0, -1].softmax(-1).numpy()
    found = np.bincount([c[0] for c in rollouts.completions], minlength=16) / count
    assert np.abs(found - wanted).max() < 4 * np.sqrt(0.25 / count)


def test_weights_that_are_no_numbers_show_in_the_logprobs_and_harm_no_later_ones(subject):
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights_of(subject.model).items()}
    subject.engine.load_weights(broken)
    assert not np.isfinite(np.concatenate(subject.generate(1.0).logprobs)).any()
    subject.load(0)
    assert subject.generate(1.0).completions == subject.as_started.completions


def test_weights_of_another_shape_are_refused(subject):
    with pytest.raises(ArtifactError, match="the weights are not this model's"):
        subject.engine.load_weights(weights_of(make_model(0)))


def test_a_context_that_the_model_cannot_see_is_refused(model, tokenizer):
    with pytest.raises(ConfigError, match="up to 65 tokens do not fit the 64 that the model sees"):
        build_engine(EngineSettings("transformers"), model, tokenizer, batch_size=4, context=65)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("no memory\n  left.", "no memory left."),
        ("", "RuntimeError."),
        (" ...", "RuntimeError."),
        ("x" * 500, "x" * 399 + "…"),
        ("a b " * 500, "a b " * 99 + "a b…"),
    ],
)
def test_why_vllm_ended_is_a_sentence(said, reason):
    assert reason_of(RuntimeError(said)) == reason


def test_weights_pass_through_memory_where_there_is_room_for_every_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "MEMORY_FOLDER", tmp_path)
    free = shutil.disk_usage(tmp_path).free
    size = (free // 3 - GIB) // 2  # room for two ranks, and not for four
    for ranks, folder in ((1, tmp_path), (2, tmp_path), (4, None)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert roomy_folder(size) == folder
    monkeypatch.setattr(vllm_engine, "MEMORY_FOLDER", tmp_path / "none")
    assert roomy_folder(0) is None


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_where_it_is_not_installed_is_refused_with_its_remedy(model, tokenizer):
    with pytest.raises(ConfigError, match="'vllm', which is not installed here. Install .* or choose `engine: transf"):
        build_engine(EngineSettings("vllm"), model, tokenizer, batch_size=4, context=20)
