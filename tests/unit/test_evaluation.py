"""What a model does with a task: each completion's outcome, whatever it shares a batch with."""

import pandas as pd
import pytest
from tiny_models import make_model

from effopd.engines.base import Sampling
from effopd.engines.transformers_engine import TransformersEngine
from effopd.evaluation import measure
from effopd.models import special_ids
from effopd.prompts import Prompts
from effopd.tasks.base import Problem


@pytest.fixture
def measured(task):
    """A function: the outcomes of 20 problems of mixed lengths, asked `batch_size` at a time."""
    tables, _ = task.make_tables()
    problems = [Problem(text, text) for text in tables["test"]["problem"][:20]]
    tokenizer, student = task.make_tokenizer(), make_model(0)
    eos_id, pad_id = special_ids(tokenizer)
    prompts = Prompts([tokenizer(problem.text)["input_ids"] for problem in problems], problems)
    assert len({len(tokens) for tokens in prompts.tokens}) > 2

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


def test_outcomes_follow_their_prompts(measured):
    backwards = measured(4, range(19, -1, -1))
    assert backwards["index"].tolist() == list(range(19, -1, -1))
    pd.testing.assert_frame_equal(backwards[::-1].reset_index(drop=True), measured(4), atol=1e-3, rtol=1e-4)
