"""Questions with given choices (such as GPQA): the answer is the letter of a choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from effopd.randomness import generator
from effopd.tasks.base import Problem, Verdict
from effopd.tasks.boxed import last_boxed
from effopd.tasks.dataset import DatasetTask, UnusableRowError
from effopd.tasks.sources import Row, text_at, value_at
from effopd.tasks.splits import content_hash

# `Answer: C`, `the answer is (C)`, `**Answer:** C.`; `A` and `I` are words too, so they must end the phrase.
STATED = re.compile(
    r"(?i:answer)\b\W*(?:is\b)?\W*(?:text\{|mathrm\{)?(?:([B-HJ-Z])\b(?!['’])|([AI])(?=[)\]}*.,:;]|\s*(?:\n|$)))"
)
# What may stand in a box: `C`, `(C)`, `\text{C}`, `C. some text`, `C) some text`.
BOXED = re.compile(r"^\W*(?:text|mathrm|textbf|mathbf)?\W*([A-Z])(?:\W|$)")


class ChoiceTask(DatasetTask):
    """Multiple choice; the choices of each question are shuffled by a permutation of its own."""

    def read_row(self, row: Row, columns: Mapping[str, Any]) -> tuple[Problem, str]:
        question = text_at(row, columns["problem"])
        choices = _choices(row, columns["choices"])
        if not question:
            raise UnusableRowError("no question")
        if not 2 <= len(choices) <= len(ascii_uppercase) or "" in choices or len(set(choices)) < len(choices):
            raise UnusableRowError("fewer than two choices, or choices that are empty or alike")
        right = _right_choice(row, columns, choices)
        content = "\n".join([question, *sorted(choices)])
        order = generator(self.section["seed"], "choices", content_hash(content)).permutation(len(choices)).tolist()
        lines = [f"{letter}. {choices[place]}" for letter, place in zip(ascii_uppercase, order, strict=False)]
        answer = ascii_uppercase[order.index(right)]
        return Problem("\n".join([question, "", *lines]), answer), content

    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Reward 1 where the last boxed letter or, without a box, the last stated answer is the reference."""
        letter = _answer_letter(completion)
        if letter is None:
            return Verdict(0.0, "no answer: no letter is boxed or follows 'Answer:'")
        if letter != problem.answer:
            return Verdict(0.0, f"answers {letter}, not the reference")
        return Verdict(1.0, "right")

    def right_completion(self, problem: Problem) -> str:
        return f"\\boxed{{{problem.answer}}}"

    def wrong_completion(self, problem: Problem) -> str:
        return "\\boxed{B}" if problem.answer == "A" else "\\boxed{A}"


def _choices(row: Row, column: str | Sequence[str]) -> list[str]:
    if not isinstance(column, str):
        return [text_at(row, name) for name in column]
    values = value_at(row, column)
    if isinstance(values, Mapping) and "text" in values:  # {label: [A, B], text: [...]}
        column, values = f"{column}.text", values["text"]
    if not isinstance(values, list):
        raise UnusableRowError("the choices are no list")
    return [text_at(row, f"{column}.{place}") for place in range(len(values))]


def _right_choice(row: Row, columns: Mapping[str, Any], choices: Sequence[str]) -> int:
    answer = text_at(row, columns["answer"])
    kind = columns["answer_is"]
    if kind == "text":
        place = choices.index(answer) if answer in choices else -1
    elif kind == "letter":
        place = ascii_uppercase.find(answer.upper()) if len(answer) == 1 else -1
    else:
        place = int(answer) if answer.isdigit() else -1
    if not 0 <= place < len(choices):
        raise UnusableRowError(f"the answer is not the {kind} of a choice")
    return place


def _answer_letter(completion: str) -> str | None:
    boxed = BOXED.match(last_boxed(completion) or "")
    if boxed:
        return boxed[1]
    stated = STATED.findall(completion)
    return "".join(stated[-1]) if stated else None
