"""Which sequences share a forward pass."""

import itertools

import numpy as np
import pytest
import torch

from effopd.data import batching as passes
from effopd.data.batching import passes_of
from effopd.data.rollouts import Rollouts
from effopd.data.sharding import Shard
from effopd.engines.base import Sampling
from effopd.models.models import load_model, weights_of
from effopd.specs.read import read_spec
from effopd.stages.make_data import make_data
from effopd.stages.pretrain_model import pretrain_model
from effopd.teachers.scoring import LocalTeacher, ReverseKL, Scores, measure_logprobs, measure_reverse_kl
from effopd.workflow.job_specs import Plan
from small_engine import PROMPTS, SEEDS, engine_of
from tiny_models import make_model


def lengths_of(seed: int, count: int = 37) -> list[int]:
    return np.random.default_rng(seed).integers(1, 200, count).tolist()


def positions(lengths: list[int], rows: list[list[int]]) -> int:
    """What is computed, padding included."""
    return sum(len(part) * max(lengths[row] for row in part) for part in rows)


@pytest.mark.parametrize("size", [1, 4, 36])
def test_passes_hold_every_sequence_once_the_longest_first(size):
    lengths = lengths_of(0)
    parts = passes_of(lengths, size)
    assert sorted(itertools.chain(*parts)) == list(range(37))
    assert [len(part) for part in parts] == [size] * (37 // size) + [37 % size] * (37 % size > 0)
    in_order = [lengths[row] for row in itertools.chain(*parts)]
    assert in_order == sorted(lengths, reverse=True)


def test_no_other_passes_of_that_size_have_less_padding():
    lengths = [3, 9, 4, 8, 1, 7]
    least = min(
        positions(lengths, [list(order[:2]), list(order[2:4]), list(order[4:])])
        for order in itertools.permutations(range(6))
    )
    assert positions(lengths, passes_of(lengths, 2)) == least


def test_one_pass_for_all_keeps_the_order():
    assert passes_of([3, 9, 4], 3) == passes_of([3, 9, 4], 100) == [[0, 1, 2]]
    assert passes_of([], 4) == []


@pytest.mark.parametrize("seed", range(5))
def test_passes_are_large_or_little_padded(seed, monkeypatch):
    monkeypatch.setattr(passes, "FEWEST_POSITIONS", 600)
    lengths = lengths_of(seed)
    parts = passes_of(lengths, 37)
    assert len(parts) > 2
    assert sorted(itertools.chain(*parts)) == list(range(37))
    for part, following in itertools.pairwise(parts):
        of_part = [lengths[row] for row in part]
        fewest = -(-600 // max(of_part))  # sequences that make a pass large enough
        assert len(part) >= fewest
        assert all(length >= 0.75 * max(of_part) for length in of_part[fewest:])
        assert lengths[following[0]] < 0.75 * max(of_part)  # else it would have been in the pass before
    assert positions(lengths, parts) < 0.75 * positions(lengths, [list(range(37))])


@pytest.fixture
def rollouts() -> Rollouts:
    made = engine_of(make_model(0)).generate(PROMPTS[:10], SEEDS[:10], Sampling(1.0, 12))
    assert len(set(made.lengths)) > 4
    return made


def test_what_models_say_does_not_depend_on_the_passes(rollouts, model, other_model, monkeypatch):
    """Each rollout gets its own scores, wherever its pass stood."""

    def everything():
        scores = LocalTeacher(other_model, pad_id=0, batch_size=8, top_k=3, hidden_states=True).score(rollouts)
        logprobs = measure_logprobs(model, rollouts, pad_id=0, batch_size=8, temperature=0.5)
        kl = measure_reverse_kl(model, other_model, rollouts, pad_id=0, batch_size=8)
        return scores.logprobs, scores.top_ids, scores.top_logprobs, scores.hidden_states, logprobs, kl

    assert rollouts.passes(8) == [list(range(8)), [8, 9]]
    at_once = everything()
    monkeypatch.setattr(passes, "FEWEST_POSITIONS", 1)
    assert len(rollouts.passes(8)) > 2
    assert all({row // 8 for row in rows} in ({0}, {1}) for rows in rollouts.passes(8))  # fixed batches stay apart
    for mine, theirs in zip(everything(), at_once, strict=True):
        assert [row.shape for row in mine] == [row.shape for row in theirs]
        for row, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(row, other, atol=1e-5)


def test_shares_of_a_step_are_scored_as_the_whole_bit_for_bit(rollouts, other_model, monkeypatch):
    """A pass never crosses fixed batches: staged and colocated runs have the same scores."""
    monkeypatch.setattr(passes, "FEWEST_POSITIONS", 1)
    teacher = LocalTeacher(other_model, pad_id=0, batch_size=4, top_k=3)
    whole = teacher.score(rollouts)
    shards = [Shard(index, 2).rows(len(rollouts), 4) for index in range(2)]
    parts = Scores.concatenate([teacher.score(rollouts.select(rows)) for rows in shards])
    for name in ("logprobs", "top_ids", "top_logprobs"):
        for mine, theirs in zip(getattr(parts, name), getattr(whole, name), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_remembered_teacher_says_the_same_of_the_next_student(rollouts, model, other_model, monkeypatch):
    monkeypatch.setattr(passes, "FEWEST_POSITIONS", 1)
    divergence = ReverseKL(other_model, rollouts, pad_id=0, batch_size=8)
    divergence.of(other_model)
    assert len(divergence.remembered) == len(rollouts.passes(8)) > 2
    wanted = measure_reverse_kl(model, other_model, rollouts, pad_id=0, batch_size=8)
    for mine, theirs in zip(divergence.of(model), wanted, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_pretraining_in_passes_makes_the_same_model(tmp_path):
    task = {"splits": {"train": 128, "validation": 16, "test": 16}, "corpus": {"size": 200}}
    small = {"kind": "pretrain", "steps": 3, "hidden_size": 32, "intermediate_size": 48, "layers": 2, "head_dim": 8}

    def trained(**settings):
        base = {**small, "batch_size": 16, **settings}
        plan = Plan(
            {"task": task, "models": {"base": base, "teacher": {"kind": "grpo", "init": "base"}}, "runs": {"opd": {}}}
        )
        folder = tmp_path / str(settings)
        data, model = folder / "data/manifest.json", folder / "model/manifest.json"
        make_data(read_spec("make_data", plan.spec("make_data")), data)
        pretrain_model(
            read_spec("pretrain_model", plan.spec("pretrain_model", model="base")), data, model, torch.device("cpu")
        )
        return weights_of(load_model(model.parent, torch.device("cpu")))

    whole = trained()
    for name, tensor in trained(micro_batch=3).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=2e-5, msg=name)
