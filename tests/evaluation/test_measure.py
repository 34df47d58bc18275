"""What a model does with a task: each completion's outcome, whatever it shares a batch with."""

import math
import time

import numpy as np
import pandas as pd
import pytest
import torch

from effopd.data.prompts import Prompts
from effopd.data.rollouts import Rollouts
from effopd.engines.base import Sampling
from effopd.engines.transformers_engine import TransformersEngine
from effopd.evaluation.measure import Measurement, measure
from effopd.models.models import special_ids
from effopd.tasks.base import Problem
from effopd.teachers.scoring import measure_reverse_kl
from tiny_models import make_model


@pytest.fixture
def prompts(task, tokenizer) -> Prompts:
    """20 problems of mixed lengths."""
    rows = task.make_split("test")[["problem", "answer"]][:20].itertuples(index=False)
    problems = [Problem(text, answer) for text, answer in rows]
    found = Prompts([tokenizer(problem.text)["input_ids"] for problem in problems], problems)
    assert len({len(tokens) for tokens in found.tokens}) > 2
    return found


@pytest.fixture
def measured(task, tokenizer, prompts):
    """A function: the outcomes of these problems, asked `batch_size` at a time."""
    student = make_model(0)
    eos_id, pad_id = special_ids(tokenizer)

    def run(batch_size: int, rows=range(20)) -> pd.DataFrame:
        engine = TransformersEngine(student, eos_id=eos_id, pad_id=pad_id, batch_size=batch_size)
        asked, seeds = prompts.select(rows), [100 + row for row in rows]
        found = measure(
            engine, task, tokenizer, asked, seeds, Sampling(1.0, 12), list(rows),
            student=student, teacher=make_model(1), batch_size=batch_size,
        )  # fmt: skip
        return found.items

    return run


def test_outcomes_are_in_the_order_of_the_prompts_however_they_are_cut_into_batches(measured):
    alone = pd.concat([measured(1, [row]) for row in range(20)], ignore_index=True)
    for batch_size in (3, 8, 20, 64):
        pd.testing.assert_frame_equal(measured(batch_size), alone, atol=1e-3, rtol=1e-4)
    assert alone["tokens"].nunique() > 1


def test_the_reverse_kl_is_a_mean_over_tokens_and_not_over_answers():
    """A long answer counts as often as it has tokens; one that is no number is seen."""
    items = pd.DataFrame({"reward": [1.0, 0.0], "tokens": [1, 9], "reverse_kl": [0.5, 0.9]})
    measured = Measurement(items, True, 2.0, 3.0)
    assert measured.reverse_kl == pytest.approx(1.4 / 10) != pytest.approx((0.5 + 0.1) / 2)
    assert (measured.accuracy, measured.tokens) == (0.5, 10)
    assert math.isnan(Measurement(items.assign(reverse_kl=[0.5, math.nan]), True, 0, 0).reverse_kl)


def test_the_cost_of_a_measurement_counts_what_was_generated_and_what_was_judged():
    items = pd.DataFrame({"reward": [1.0, 0.0], "tokens": [1, 9]})
    (generated,) = Measurement(items, True, 2.0, 3.0).cost("evaluation", 4)
    assert generated["stage"] == "evaluation: generate"
    assert (generated["step"], generated["seconds"], generated["generated_tokens"]) == (4, 2.0, 10)
    assert (generated["scored_tokens"], generated["judged_tokens"]) == (0, 0)
    both = Measurement(items.assign(reverse_kl=0.0), True, 2.0, 3.0).cost("evaluation", 4)
    assert both[0] == generated
    assert both[1]["stage"] == "evaluation: score"
    assert (both[1]["step"], both[1]["seconds"], both[1]["generated_tokens"]) == (4, 3.0, 0)
    assert (both[1]["scored_tokens"], both[1]["judged_tokens"]) == (10, 10)


def test_the_reverse_kl_of_each_answer_is_the_sum_over_its_tokens(task, tokenizer, prompts):
    student, teacher = make_model(0), make_model(1)
    eos_id, pad_id = special_ids(tokenizer)
    engine = TransformersEngine(student, eos_id=eos_id, pad_id=pad_id, batch_size=8)
    rollouts = engine.generate(prompts.tokens, list(range(20)), Sampling(1.0, 12))
    found = measure(
        engine, task, tokenizer, prompts, list(range(20)), Sampling(1.0, 12), list(range(20)),
        student=student, teacher=teacher, batch_size=20,
    )  # fmt: skip
    total = 0.0
    rows = zip(rollouts.prompts, rollouts.completions, found.items["reverse_kl"], strict=True)
    for prompt, completion, value in rows:
        ids = torch.tensor([prompt + completion])
        with torch.no_grad():
            mine, theirs = (of(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for of in (student, teacher))
        by_hand = (mine.exp() * (mine - theirs)).sum().item()
        assert value == pytest.approx(by_hand, rel=1e-4)
        total += by_hand
    assert found.reverse_kl == pytest.approx(total / rollouts.completion_tokens, rel=1e-4)
    assert found.finite


def test_the_reverse_kl_is_that_of_the_policy_at_its_temperature(task, tokenizer, prompts):
    student, teacher = make_model(0), make_model(1)
    eos_id, pad_id = special_ids(tokenizer)
    engine = TransformersEngine(student, eos_id=eos_id, pad_id=pad_id, batch_size=20)
    given = engine, task, tokenizer, prompts, list(range(20)), Sampling(0.5, 12), list(range(20))
    found = measure(*given, student=student, teacher=teacher, batch_size=20, policy_temperature=0.5)
    rollouts = engine.generate(prompts.tokens, list(range(20)), Sampling(0.5, 12))
    per_token = measure_reverse_kl(student, teacher, rollouts, pad_id=pad_id, batch_size=20, temperature=0.5)
    np.testing.assert_allclose(found.items["reverse_kl"], [row.sum() for row in per_token], rtol=1e-4)


def test_without_a_student_or_a_teacher_there_is_no_reverse_kl(task, tokenizer, prompts):
    student = make_model(0)
    eos_id, pad_id = special_ids(tokenizer)
    engine = TransformersEngine(student, eos_id=eos_id, pad_id=pad_id, batch_size=20)
    given = engine, task, tokenizer, prompts, list(range(20)), Sampling(1.0, 12), list(range(20))
    for models in ({}, {"student": student}, {"teacher": student}):
        started = time.perf_counter()
        found = measure(*given, **models, batch_size=20)
        elapsed = time.perf_counter() - started
        assert {"index", "reward", "tokens", "finished"} <= set(found.items)
        assert "reverse_kl" not in found.items
        (cost,) = found.cost("evaluation", 1)
        assert 0 < cost["seconds"] <= elapsed
    started = time.perf_counter()
    costs = measure(*given, student=student, teacher=student, batch_size=20).cost("evaluation", 1)
    assert 0 < sum(cost["seconds"] for cost in costs) <= time.perf_counter() - started


def test_outcomes_follow_their_prompts(measured):
    backwards = measured(4, range(19, -1, -1))
    assert backwards["index"].tolist() == list(range(19, -1, -1))
    pd.testing.assert_frame_equal(backwards[::-1].reset_index(drop=True), measured(4), atol=1e-3, rtol=1e-4)


def test_each_answer_is_judged_by_its_own_problem(task, tokenizer, prompts):
    class Knowing:
        """An engine that has every second problem right."""

        def generate(self, asked, seeds, sampling):
            problem_of = {
                tuple(tokens): problem for tokens, problem in zip(prompts.tokens, prompts.problems, strict=True)
            }
            answers = [
                (task.wrong_completion if seed % 2 else task.right_completion)(problem_of[tuple(tokens)])
                for tokens, seed in zip(asked, seeds, strict=True)
            ]
            completions = [[*tokenizer(answer)["input_ids"], tokenizer.eos_token_id] for answer in answers]
            logprobs = [np.zeros(len(completion), np.float32) for completion in completions]
            return Rollouts(list(asked), completions, logprobs, [True] * len(asked))

    found = measure(
        Knowing(), task, tokenizer, prompts, list(range(20)), Sampling(1.0, 12), list(range(20)), batch_size=4
    )
    assert found.items["reward"].tolist() == [1.0, 0.0] * 10
