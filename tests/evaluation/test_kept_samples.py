"""Kept completions are the text that the verifier judged, whatever tokens a model gives and however it was asked."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.data.prompts import Prompts
from effopd.data.rollouts import Rollouts
from effopd.engines.base import RolloutEngine, Sampling
from effopd.evaluation.kept_samples import RememberingEngine, samples_of
from effopd.evaluation.measure import measure
from effopd.evaluation.sample_files import SUFFIX, read_samples, write_samples
from effopd.models.models import special_ids
from effopd.tasks.base import Problem, Verdict
from tiny_models import byte_tokenizer

TOKENIZER = byte_tokenizer()
EOS, _ = special_ids(TOKENIZER)
A, B, C = TOKENIZER("ABC")["input_ids"]


class Given(RolloutEngine):
    """Gives the completion of each seed."""

    def __init__(self, completions):
        self.completions = completions

    def generate(self, prompts, seeds, sampling):
        given = [self.completions[seed] for seed in seeds]
        logprobs = [np.zeros(len(completion), np.float32) for completion in given]
        return Rollouts([*map(list, prompts)], given, logprobs, [completion[-1] == EOS for completion in given])


class Echo:
    """A verifier that says what it saw."""

    def verify_all(self, problems, completions):
        return [Verdict(0.5, f"{problem.text}: {text}") for problem, text in zip(problems, completions, strict=True)]


TOKENS = st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(st.lists(TOKENS, min_size=1, max_size=6), st.data())
def test_a_kept_text_is_the_one_that_was_judged(tmp_path_factory, completions, data):
    count = len(completions)
    kept = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    prompts = Prompts(
        [[A] * (1 + row * 7 % 5) for row in range(count)], [Problem(f"p{row}", "") for row in range(count)]
    )
    engine = RememberingEngine(Given(completions), kept)
    asked = engine, Echo(), TOKENIZER, prompts, range(count), Sampling(1.0, 12), range(count)
    measured = measure(*asked, batch_size=2)  # so that prompts are asked in the order of their length
    found = samples_of(TOKENIZER, prompts.select(kept), kept, engine.remembered, measured.items.iloc[kept])
    folder = tmp_path_factory.getbasetemp()
    write_samples(folder / f"any{SUFFIX}", found)
    about = {"kind": "evaluation", "spec": {}, "parents": {}, "started": 0}
    write_manifest(folder / "any.json", files={f"any{SUFFIX}": folder / f"any{SUFFIX}"}, **about)
    read = read_samples(read_manifest(folder / "any.json"))
    assert read == found
    for row, sample in zip(kept, read, strict=True):
        assert (sample.row, sample.problem, sample.prompt) == (row, f"p{row}", "A" * (1 + row * 7 % 5))
        assert sample.reason == f"p{row}: {sample.completion}"
        assert (sample.tokens, sample.finished) == (len(completions[row]), completions[row][-1] == EOS)
        assert sample.verdict == "partly right (0.5)" + ("" if sample.finished else ", cut off")


def test_only_the_chosen_ones_are_remembered_and_the_others_pass_by():
    engine = RememberingEngine(Given({seed: [66, 67 + seed] for seed in range(5)}), [3, 0])
    whole = engine.generate([[A]] * 5, range(5), Sampling(1.0, 2))
    assert whole.completions == [[66, 67 + seed] for seed in range(5)]
    assert engine.remembered.completions == [[66, 70], [66, 67]]


@pytest.mark.parametrize(
    ("reward", "finished", "word"),
    [(1, True, "right"), (0, True, "wrong"), (0.333, True, "partly right (0.33)"), (1, False, "right, cut off")],
)
def test_the_verdict_in_words(reward, finished, word):
    items = {"reward": [reward], "reason": ["x"], "tokens": [2], "finished": [finished]}
    rollouts = Rollouts([[A]], [[B, EOS if finished else C]], [np.zeros(2, np.float32)], [finished])
    asked = Prompts([[A]], [Problem("p", "a")])
    (sample,) = samples_of(TOKENIZER, asked, [9], rollouts, pd.DataFrame(items))
    assert (sample.verdict, sample.completion) == (word, "B" if finished else "BC")
