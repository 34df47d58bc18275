"""Questions with given choices (such as GPQA): the answer is the letter of a choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from effopd.common.randomness import generator
from effopd.tasks.base import Problem, Verdict
from effopd.tasks.boxed import boxes
from effopd.tasks.dataset import DatasetTask
from effopd.tasks.readers import Row, UnusableRowError
from effopd.tasks.sources import as_text, text_at, value_at
from effopd.tasks.splits import content_hash

LONGEST_BOX = 2000  # characters; boxes inside boxes would take time in proportion to the square of their number
# What only dresses text: emphasis, quotation marks, math mode, and LaTeX's fonts and spaces.
MARKUP = re.compile(
    r"\\(?:text|math)[a-z]*\b|\\(?:bf|it|rm|sf|quad|boldsymbol)\b|\\[()\[\],;:! ]|[*_`~${}\"“”«»]"
    r"|(?<!\w)['‘](?=[A-Z]['’])|(?<=['‘][A-Z])['’](?!\w)"
)
LABEL = r"[(\[]?[A-Z][)\]]?"
BETWEEN = r"(?:[ \t,;/&]|\b(?:and|or)\b)++"
END = r"(?=[)\].,:;]|[^\S\n]*+(?:\n|$))"
# The whole of a box: `C`, `(C)`, `Option C`; or several, which is no answer to a question that has one.
BOXED = re.compile(
    rf"\s*+(?:(?i:the|correct|final|answer|option|choice|is)\b[\s:]*+)*({LABEL}(?:{BETWEEN}{LABEL})*)\s*+[.,:;]?\s*+"
)
# A box that repeats the choice: `C. some text`, `C) some text`, `(C) some text`.
REPEATED = re.compile(
    r"(?:^|[,;/&]|\b(?:and|or)\b)\s*+(?:(?i:option|choice)\s++)?(?:[(\[]([A-Z])[)\]]|([A-Z])\s*+[.):](?=\s))"
)
# `Answer: C`, `the answer is (C)`, `the correct option is C`. `A` and `I` are words too: they must end the phrase.
STATED = re.compile(
    r"(?i:answer|(?:correct|right|best)\s++(?:option|choice))\b\s*+(?:(?i:option|choice)\b\s*+)?"
    r"(?P<link>(?:[:=]|is\b)\s*+:?+)?\s*+(?:(?i:option|choice)\b\s*+)?"
    rf"(?P<labels>[(\[]?(?:[B-HJ-Z](?![\w'’+^-])|[AI](?:{END}|(?=!|[^\S\n]++[(–—-]|\s++(?:because|since|as)\b)))[)\]]?"
    rf"(?:{BETWEEN}{LABEL}(?!\w){END})*)(?(link)|(?=[.)]*+[^\S\n]*+(?:\n|$)))"
)

# `Option C is correct`, `(C) is the right answer`; not `neither option B nor option C is correct`.
CALLED_RIGHT = re.compile(
    r"(?<!\bnor )(?<!\bif )(?<!\bor )(?<!\band )(?<!\bwhether )"
    r"(?:(?i:option|choice|answer)\s++(?=[(\[]?[A-Z])|(?=[(\[][A-Z]))"
    rf"(?P<labels>{LABEL})\s++is\s++(?:the\s++)?(?i:correct|right|best)(?:\s++(?i:answer|option|choice|one))?"
    r"(?=\s*+(?:[.,;:!]|\n|$)|\s++(?:because|since|as)\b)"
)
TAGGED = re.compile(rf"(?i:<answer>)([^<]{{1,{LONGEST_BOX}}})(?:(?i:</answer>)|\Z)")
WRITTEN_LABEL = re.compile(r"[(\[]?([A-Z])(?:[)\]]\s*|[.:]\s+)(?=\S)")  # `A)21`, `(A) 21`, `A. 21`


class ChoiceTask(DatasetTask):
    """Multiple choice; the choices of each question are shuffled by a permutation of its own.

    Those of a source with worked responses keep their order, since responses name choices by their letters.
    """

    def read_row(self, row: Row, columns: Mapping[str, Any]) -> tuple[Problem, str]:
        question = text_at(row, columns["problem"])
        written = _choices(row, columns["choices"])
        choices = _without_labels(written)
        if not question:
            raise UnusableRowError("no question")
        if not 2 <= len(choices) <= len(ascii_uppercase) or "" in choices or len(set(choices)) < len(choices):
            raise UnusableRowError("fewer than two choices, or choices that are empty or alike")
        right = _right_choice(row, columns, choices, written)
        content = "\n".join([question, *sorted(choices)])
        order = list(range(len(choices)))
        if "response" not in columns:
            rng = generator(self.section["seed"], "choices", content_hash(content))
            order = rng.permutation(len(choices)).tolist()
        lines = [f"{letter}. {choices[place]}" for letter, place in zip(ascii_uppercase, order, strict=False)]
        answer = ascii_uppercase[order.index(right)]
        return Problem("\n".join([question, "", *lines]), answer), content

    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Reward 1 if the last answer, a box with a choice's letter or a statement of it, names the reference alone."""
        letters = _named_letters(completion, _count_choices(problem))
        if not letters:
            return Verdict(0.0, "no answer: no letter is boxed or follows 'Answer:'")
        if letters != {problem.answer}:
            return Verdict(0.0, f"answers {' and '.join(sorted(letters))}, not the reference")
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
    return [as_text(value, f"{column}.{place}") for place, value in enumerate(values)]


def _labels(row: Row, column: str | Sequence[str]) -> list[str]:
    """The labels that the data themselves give choices, by which answers name them; none if they give none."""
    value = value_at(row, column) if isinstance(column, str) else None
    labels = value.get("label") if isinstance(value, Mapping) else None
    return [str(label).strip() for label in labels] if isinstance(labels, list) else []


def _without_labels(choices: list[str]) -> list[str]:
    """Choices without the letters that all of them begin with in order: they are shuffled, and get others."""
    labels = [WRITTEN_LABEL.match(choice) for choice in choices]
    if any(label is None or label[1] != letter for label, letter in zip(labels, ascii_uppercase, strict=False)):
        return choices
    return [choice[label.end() :] if label else choice for choice, label in zip(choices, labels, strict=True)]


def _right_choice(row: Row, columns: Mapping[str, Any], choices: Sequence[str], written: Sequence[str]) -> int:
    """The place of the right choice, which may be given as text with or without the letter `written` before it."""
    answer = text_at(row, columns["answer"])
    kind = columns["answer_is"]
    if kind == "text":
        place = next((texts.index(answer) for texts in (choices, written) if answer in texts), -1)
    elif kind == "letter":
        labels = _labels(row, columns["choices"]) or list(ascii_uppercase)
        place = next((labels.index(one) for one in (answer, answer.upper()) if one in labels), -1)
    else:
        place = int(answer.split(".")[0]) if re.fullmatch(r"[0-9]{1,4}(\.0*)?", answer) else -1
    if not 0 <= place < len(choices):
        raise UnusableRowError(f"the answer is not the {kind} of a choice")
    return place


def _named_letters(completion: str, choices: int) -> set[str]:
    """The choices that the last answer in a completion names; none if no box and no statement names any.

    Letters beyond the number of choices are symbols (`E = mc^2`), not answers.
    """
    text = MARKUP.sub(lambda mark: " " * len(mark[0]), completion)  # what is found keeps its place
    found = [(start, _boxed_letters(text[start:end])) for start, end in boxes(completion) if end - start <= LONGEST_BOX]
    found += [(tagged.start(), _boxed_letters(text[slice(*tagged.span(1))])) for tagged in TAGGED.finditer(completion)]
    for pattern in (STATED, CALLED_RIGHT):
        found += [(one.start("labels"), set(re.findall("[A-Z]", one["labels"]))) for one in pattern.finditer(text)]
    named = [(place, letters) for place, letters in found if letters and letters <= set(ascii_uppercase[:choices])]
    return max(named, key=lambda pair: pair[0], default=(0, set[str]()))[1]


def _boxed_letters(content: str) -> set[str]:
    """The choices that a box names."""
    if whole := BOXED.fullmatch(content):
        return set(re.findall(r"\b[A-Z]\b", whole[1]))
    repeated = list(REPEATED.finditer(content.strip()))
    if not repeated or repeated[0].start() > 0:
        return set()
    return {label[1] or label[2] for label in repeated}


def _count_choices(problem: Problem) -> int:
    """How many choices a problem has: the lines `A. `, `B. `, ... after its last blank line that `A. ` follows."""
    _, listed, choices = problem.text.rpartition("\n\nA. ")
    if not listed:
        return len(ascii_uppercase)
    count = 1
    for line in choices.split("\n"):
        count += count < len(ascii_uppercase) and line.startswith(f"{ascii_uppercase[count]}. ")
    return max(count, 1 + ascii_uppercase.find(problem.answer))
