"""The HTTP teacher against a real server on the loopback: the same scores as a local one, and what it does when it fails."""

from __future__ import annotations

import numpy as np
import pytest

from effopd.common.errors import UserError
from effopd.engines.base import Sampling
from effopd.engines.transformers_engine import TransformersEngine
from effopd.tasks.base import build_task
from effopd.teachers.endpoint import EndpointTeacher
from effopd.teachers.scoring import LocalTeacher
from teacher_server import Behavior, serving
from tiny_models import TASK_SECTION

PROMPTS = [[5, 8, 3], [9, 4, 7, 12, 6, 3, 11], [2, 2], [13, 5, 8, 3, 9], [6]]


@pytest.fixture
def rollouts(model):
    engine = TransformersEngine(model, eos_id=1, pad_id=0, batch_size=8)
    return engine.generate(PROMPTS, [1, 2, 3, 4, 5], Sampling(1.0, 8))


@pytest.fixture
def behavior(other_model, tokenizer):
    return Behavior(other_model, tokenizer)


def teacher_at(url, tokenizer, top_k=0, vocabulary=None, **options):
    endpoint = {
        "url": url,
        "model": "teacher",
        "timeout": 10,
        "retries": 3,
        "backoff": 0.01,
        "concurrency": 4,
        **options,
    }
    return EndpointTeacher(endpoint, tokenizer, top_k=top_k, vocabulary=vocabulary)


@pytest.mark.parametrize("top_k", [0, 3])
def test_scores_are_those_of_the_same_model_here(behavior, tokenizer, rollouts, other_model, top_k):
    here = LocalTeacher(other_model, pad_id=0, batch_size=2, top_k=top_k).score(rollouts)
    with serving(behavior) as url:
        there = teacher_at(url, tokenizer, top_k).score(rollouts)
    for column in ("logprobs", "top_logprobs", "top_ids"):
        assert len(getattr(there, column)) == len(getattr(here, column))
        for mine, theirs in zip(getattr(there, column), getattr(here, column), strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_likeliest_tokens_that_are_none_of_the_tokenizers_are_no_scores(behavior, tokenizer, rollouts):
    with serving(behavior) as url, pytest.raises(UserError, match="tokens of the tokenizer among the 3 likeliest"):
        teacher_at(url, tokenizer, 3, vocabulary=4).score(rollouts)


def test_requests_go_out_together_and_no_more_than_asked_for(behavior, tokenizer, rollouts):
    behavior.delay = 0.1
    with serving(behavior) as url:
        teacher_at(url, tokenizer, concurrency=2).score(rollouts)
    assert behavior.most_at_once == 2
    assert behavior.completions == len(rollouts)


def test_passing_failures_are_met_with_patience(behavior, tokenizer, rollouts, other_model):
    behavior.failures = [503, 0, 429, 500, 0]
    here = LocalTeacher(other_model, pad_id=0, batch_size=8).score(rollouts)
    with serving(behavior) as url:
        there = teacher_at(url, tokenizer, retries=5).score(rollouts)
    np.testing.assert_allclose(np.concatenate(there.logprobs), np.concatenate(here.logprobs), atol=1e-5)
    assert behavior.completions == len(rollouts) + 5


def test_a_server_that_stays_broken_ends_the_job_with_one_line(behavior, tokenizer, rollouts):
    behavior.failures = [503] * 1000
    with serving(behavior) as url, pytest.raises(UserError) as caught:
        teacher_at(url, tokenizer, concurrency=1).score(rollouts)
    assert "did not answer in 4 attempts (status 503: failing on purpose with 503). Start it again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_gone_is_named(behavior, tokenizer, rollouts):
    with serving(behavior) as url:
        teacher = teacher_at(url, tokenizer)
        teacher.score(rollouts)
    with pytest.raises(UserError, match=f"the teacher's server at {url} did not answer in 4 attempts .connection"):
        teacher.score(rollouts)


def test_slow_answers_time_out(behavior, tokenizer, rollouts):
    behavior.delay = 1.0
    with serving(behavior) as url, pytest.raises(UserError, match="1 attempt .it took too long"):
        teacher_at(url, tokenizer, timeout=0.1, retries=0).score(rollouts)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"model": "other"}, "asks .* for the model 'other', and it serves teacher. Name one of these"),
        ({"room": 12}, {}, r"takes 12 tokens, and a rollout has 15, with 1 to spare. Serve it with `--max-model-len 16`"),
        ({"max_logprobs": 2}, {"top_k": 3}, r"status 400: Requested prompt logprobs of 3, more than 2\). Serve it with `--max-logprobs 3`"),
        ({"failures": [404] * 99}, {}, r"refuses .status 404: failing on purpose with 404.. Fix `runtime.endpoints`"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_its_remedy(behavior, tokenizer, rollouts, change, options, said):
    for name, value in change.items():
        setattr(behavior, name, value)
    with serving(behavior) as url, pytest.raises(UserError, match=said):
        teacher_at(url, tokenizer, **options).score(rollouts)


def test_another_tokenizer_is_refused(behavior, rollouts):
    other = build_task({**TASK_SECTION}).make_tokenizer()
    other.add_tokens(["seven"])
    behavior.tokenizer = other
    rollouts.prompts[0] = [16, 8, 3]
    with serving(behavior) as url, pytest.raises(UserError, match="has another tokenizer: it reads"):
        teacher_at(url, build_task(TASK_SECTION).make_tokenizer()).score(rollouts)


def test_a_server_that_cannot_show_its_tokenizer_is_believed(behavior, tokenizer, rollouts, capsys):
    behavior.knows_detokenize = False
    with serving(behavior) as url:
        teacher_at(url, tokenizer).score(rollouts)
    assert "cannot show its tokenizer" in capsys.readouterr().err
