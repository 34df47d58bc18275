"""The embedded task: running sums, such as `7+8+5=` answered by `15,20#20`.

A skill that a small model learns in seconds and, taught from a careless corpus, executes unreliably: what a base
language model is to a reinforcement-learned one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from effopd.common.randomness import generator
from effopd.tasks.base import Problem, Task, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerFast

CHARACTERS = "0123456789+=,#"
PAD, EOS = "<pad>", "</s>"
DRAWN_AT_ONCE = 1024
# Each problem belongs to one split for ever, by a hash of its text: splits cannot overlap, whatever their sizes.
SPLIT_SHARES = {"test": 30, "validation": 10, "train": 60}


class ArithmeticTask(Task):
    """Problems of `min_terms` to `max_terms` numbers up to `largest_term`, as many of each length as there are."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.section = section  # to verify, its name is enough

    def make_tables(self) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        tables = {split: self.make_split(split) for split in self.section["splits"]}
        if "corpus" in self.section:  # nothing is pretrained on a task that is only evaluated on
            tables["corpus"] = self.make_corpus()
        return tables, {}

    def make_split(self, split: str) -> pd.DataFrame:
        """The problems of a split; those to train on with a worked response, free of slips."""
        import pandas as pd

        size = self.section["splits"][split]
        repeats = split == "train"  # short problems are few: training prompts may recur, held-out ones may not
        problems: list[str] = []
        seen: set[str] = set()
        for problem in self._stream(split, "problems"):
            if repeats or problem not in seen:
                seen.add(problem)
                problems.append(problem)
            if len(problems) == size:
                break
        terms = [_terms(problem) for problem in problems]
        answers, counts = [str(sum(t)) for t in terms], [float(len(t)) for t in terms]
        table = pd.DataFrame({"problem": problems, "answer": answers, "difficulty": counts})
        return table.assign(response=[_worked(t) for t in terms]) if split == "train" else table

    def make_corpus(self) -> pd.DataFrame:
        """Text to pretrain on: columns `prompt` and `completion`."""
        import pandas as pd

        corpus = self.section["corpus"]
        rng = generator(self.section["seed"], "corpus")
        rows = []
        for problem in self._stream("train", "corpus problems"):
            rows.append((problem, self._careless_answer(_terms(problem), rng)))
            if len(rows) == corpus["size"]:
                break
        return pd.DataFrame(rows, columns=["prompt", "completion"])

    def make_tokenizer(self) -> PreTrainedTokenizerFast:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {token: i for i, token in enumerate([PAD, EOS, *CHARACTERS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
        )

    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Reward 1 if the text after the only `#` is the sum of the problem's terms."""
        working, mark, answer = completion.partition("#")
        if not mark:
            return Verdict(0.0, "no answer: '#' is missing")
        if not (answer.isascii() and answer.isdigit()):
            return Verdict(0.0, "the answer after '#' is not a number")
        if (answer.lstrip("0") or "0") != str(sum(_terms(problem.text))):
            return Verdict(0.0, "wrong sum")
        return Verdict(1.0, "right" if working else "right, without working")

    def right_completion(self, problem: Problem) -> str:
        return f"#{problem.answer}"

    def wrong_completion(self, problem: Problem) -> str:
        return f"#{int(problem.answer) + 1}"

    def _stream(self, split: str, purpose: str) -> Iterator[str]:
        """An endless stream of problems of a split, lengths drawn evenly."""
        rng = generator(self.section["seed"], purpose, split)
        shortest, longest = self.section["min_terms"], self.section["max_terms"]
        while True:
            counts = rng.integers(shortest, longest + 1, DRAWN_AT_ONCE)
            terms = rng.integers(0, self.section["largest_term"] + 1, (DRAWN_AT_ONCE, longest)).astype(str)
            for count, row in zip(counts.tolist(), terms.tolist(), strict=True):
                problem = "+".join(row[:count]) + "="
                if split_of(problem) == split:
                    yield problem

    def _careless_answer(self, terms: list[int], rng: np.random.Generator) -> str:
        corpus = self.section["corpus"]
        if rng.random() < corpus["direct_answers"]:
            right = sum(terms)
            wrong = rng.random() < corpus["direct_error"]
            return f"#{max(0, right + _slip(rng)) if wrong else right}"
        total, partial_sums = terms[0], []
        for term in terms[1:]:
            total += term
            if rng.random() < corpus["slips"]:
                total = max(0, total + _slip(rng))
            partial_sums.append(str(total))
        return ",".join(partial_sums) + f"#{total}"


def split_of(problem: str) -> str:
    """The split that a problem belongs to."""
    share = int.from_bytes(hashlib.sha256(problem.encode()).digest()[:4], "little") % 100
    for split, size in SPLIT_SHARES.items():
        if share < size:
            return split
        share -= size
    raise AssertionError("the shares sum to 100")


def _worked(terms: list[int]) -> str:
    """The right partial sums and the answer: `15,20#20` of 7, 8 and 5."""
    sums = [str(total) for total in accumulate(terms)]
    return ",".join(sums[1:]) + f"#{sums[-1]}"


def _slip(rng: np.random.Generator) -> int:
    """A slip of 1 to 3, up or down."""
    return int(rng.integers(1, 4)) * (1 if rng.random() < 0.5 else -1)


def _terms(problem: str) -> list[int]:
    return [int(term) for term in problem.rstrip("=").split("+")]
