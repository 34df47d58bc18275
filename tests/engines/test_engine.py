"""What the transformers engine promises beyond other engines (test_engines.py): bitwise invariances."""

import numpy as np
import pytest
import torch

from effopd.common.randomness import seed_of
from effopd.engines import decoders
from effopd.engines.decoders import LeanDecoder, ModelDecoder
from effopd.engines.transformers_engine import COMPACT_BELOW
from effopd.specs.engines import Sampling
from effopd.teachers.scoring import LocalTeacher, measure_reverse_kl
from effopd.training.trainer import Trainer, TrainerSettings
from small_engine import PROMPTS, SEEDS, engine_of
from tiny_models import make_family, make_model


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


@pytest.mark.parametrize("decoder", [LeanDecoder, ModelDecoder])
def test_compaction_happens_and_changes_no_token(model, monkeypatch, decoder):
    monkeypatch.setattr(decoders, "fits_lean_decoder", lambda model: decoder is LeanDecoder)
    calls = []
    original = decoder.keep
    monkeypatch.setattr(decoder, "keep", lambda self, rows: (calls.append(len(rows)), original(self, rows))[1])
    with_compaction = engine_of(model, 24).generate(PROMPTS, SEEDS, Sampling(3.0, 50))
    assert calls, "no batch shrank: the test proves nothing"
    monkeypatch.setattr("effopd.engines.transformers_engine.COMPACT_BELOW", -1.0)
    assert COMPACT_BELOW > 0
    without = engine_of(model, 24).generate(PROMPTS, SEEDS, Sampling(3.0, 50))
    assert with_compaction.completions == without.completions


@pytest.mark.parametrize(
    ("family", "settings", "lean"),
    [
        ("qwen3", {}, True),
        ("qwen2", {}, True),
        ("llama", {"attention_bias": True, "mlp_bias": True}, True),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, False),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, False),
        ("gemma", {}, False),
        ("mixtral", {}, False),
    ],
)
def test_every_family_decodes_as_its_own_forward_pass_does(family, settings, lean):
    """Whichever decoder a model gets: log-probs are those of a forward pass over the whole sequences."""
    model = make_family(family, 0, **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:  # biases and norms of new models are all alike
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    assert decoders.fits_lean_decoder(model) == lean
    rollouts = engine_of(model, 24).generate(PROMPTS, SEEDS, Sampling(1.0, 20))
    scored = LocalTeacher(model, pad_id=0, batch_size=5).score(rollouts)
    for mine, theirs in zip(rollouts.logprobs, scored.logprobs, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=5e-5)


def test_a_model_in_training_generates_bitwise_what_one_that_only_generates_does(model):
    """Colocated jobs have the one, staged jobs the other."""
    alone = engine_of(make_model(0)).generate(PROMPTS, SEEDS, Sampling(1.0, 16))
    Trainer(model, TrainerSettings(1e-3, (0.9, 0.999), 0.0, 1.0))
    training = engine_of(model).generate(PROMPTS, SEEDS, Sampling(1.0, 16))
    assert training.completions == alone.completions
    for mine, theirs in zip(training.logprobs, alone.logprobs, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_hooked_adapted_partitioned_and_16_bit_models_keep_their_own_forward_pass(model, monkeypatch):
    assert decoders.fits_lean_decoder(model)
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    assert not decoders.fits_lean_decoder(model)
    hook.remove()
    model.register_forward_hook(lambda *_: None)  # DeepSpeed's, in the jobs that train: those must generate alike
    assert decoders.fits_lean_decoder(model)
    model.lm_head.weight.ds_id = 3  # as DeepSpeed marks what it partitions
    assert not decoders.fits_lean_decoder(model)
    del model.lm_head.weight.ds_id

    class Adapted(torch.nn.Linear):
        """As an adapter replaces a projection."""

    original = model.model.layers[0].self_attn.q_proj
    model.model.layers[0].self_attn.q_proj = Adapted(32, 32, bias=False)
    assert not decoders.fits_lean_decoder(model)
    model.model.layers[0].self_attn.q_proj = original
    assert decoders.fits_lean_decoder(model)
    assert not decoders.fits_lean_decoder(make_model(0).bfloat16())
    monkeypatch.setattr(decoders, "LEAN_PARAMETERS", 1000)
    assert not decoders.fits_lean_decoder(model)


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


class Around(torch.nn.Module):
    """Looks like the model that it wraps, as PEFT's models do."""

    def __init__(self, inner):
        super().__init__()
        self.base_model = torch.nn.Sequential(inner)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model[0], name)

    def forward(self, **arguments):
        return self.base_model[0](**arguments)


class Adapted(torch.nn.Module):
    """A layer with something added, which shows the weight of the plain layer."""

    def __init__(self, plain):
        super().__init__()
        self.plain = plain
        self.added = torch.nn.Parameter(
            torch.full(
                (plain.weight.shape[-1] if isinstance(plain, torch.nn.Embedding) else plain.weight.shape[0],), 0.5
            )
        )

    @property
    def weight(self):
        return self.plain.weight

    def forward(self, x):
        return self.plain(x) + self.added


@pytest.mark.parametrize(
    "place", ["model.embed_tokens", "model.layers.1.self_attn.q_proj", "model.norm", "lm_head", "around", "subclass"]
)
def test_what_other_packages_put_around_or_into_a_model_takes_part(model, monkeypatch, place):
    if place == "around":
        changed = Around(model)
    elif place == "subclass":
        changed = model
        model.__class__ = type("Mine", (type(model),), {"__module__": "mine"})
    else:
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, Adapted(model.get_submodule(place)))
        changed = model
    found = engine_of(changed).generate(PROMPTS, SEEDS, Sampling(1.0, 8))
    monkeypatch.setattr(decoders, "fits_lean_decoder", lambda model: False)
    right = engine_of(model).generate(PROMPTS, SEEDS, Sampling(1.0, 8))
    assert found.completions == right.completions
    for mine, theirs in zip(found.logprobs, right.logprobs, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_plain_models_have_the_lean_decoder(model):
    assert decoders.fits_lean_decoder(model)
