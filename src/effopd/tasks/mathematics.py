"""Mathematics: the boxed answer of a completion is compared with the reference by math-verify."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from effopd.tasks import math_worker
from effopd.tasks.base import Problem, Verdict
from effopd.tasks.boxed import last_boxed
from effopd.tasks.dataset import DatasetTask
from effopd.tasks.readers import Row, UnusableRowError
from effopd.tasks.sources import text_at
from effopd.tasks.workers import Workers

SECONDS = 5.0  # for one comparison; SymPy can take for ever over a short formula
NUMBER = re.compile(r"[-+]?[0-9]{1,30}(\.[0-9]{1,30}|/[1-9][0-9]{0,30})?")
TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\{([^{}\\]*)\}")
LONGEST_ANSWER = 1000  # characters; what is longer is no final answer, and slow to parse


class MathTask(DatasetTask):
    """Problems whose answer is a number, formula, set, interval, matrix or short text."""

    parallel = True

    def __init__(self, section: Mapping[str, Any]) -> None:
        super().__init__(section)
        self._workers = Workers(math_worker.__name__, "math-verify")

    def read_row(self, row: Row, columns: Mapping[str, Any]) -> tuple[Problem, str]:
        problem, answer = text_at(row, columns["problem"]), text_at(row, columns["answer"])
        boxed = last_boxed(answer)  # a worked solution serves as a reference too
        reference = answer.rpartition("####")[2].strip() if boxed is None else boxed  # the mark of GSM8K
        if not problem or not _plain(reference):
            raise UnusableRowError("no problem or no answer")
        if last_boxed(f"\\boxed{{{reference}}}") != reference:
            raise UnusableRowError("an answer whose braces are not balanced, which no box can hold")
        return Problem(problem, reference), problem

    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Reward 1 if the last boxed answer equals the reference, as text or by math-verify."""
        answer = last_boxed(completion)
        if not answer:
            return Verdict(0.0, "no answer: nothing is boxed")
        if _plain(answer) == _plain(problem.answer):
            return Verdict(1.0, "right")
        if len(answer) > LONGEST_ANSWER:
            return Verdict(0.0, f"the boxed answer is longer than {LONGEST_ANSWER} characters")
        equal, reason = self._compare(problem.answer, answer)
        return Verdict(1.0 if equal else 0.0, reason)

    def right_completion(self, problem: Problem) -> str:
        return f"\\boxed{{{problem.answer}}}"

    def wrong_completion(self, problem: Problem) -> str:
        if not NUMBER.fullmatch(problem.answer):
            return "\\boxed{-7919.25}"
        return f"\\boxed{{{Fraction(problem.answer) + 1}}}"

    def _compare(self, reference: str, answer: str) -> tuple[bool, str]:
        """Ask a worker of this process, which is killed and replaced if it takes too long."""
        reply = self._workers.ask({"reference": reference, "answer": answer}, SECONDS)
        if reply is None:
            return False, f"the answer could not be compared with the reference within {SECONDS:g} s"
        return bool(reply["equal"]), str(reply["reason"])


def _plain(answer: str) -> str:
    r"""An answer without what never matters: a final full stop, dollar signs, a `\text{}` around it, and white space.

    White space between digits stays.
    """
    bare = answer.replace("$", "").strip().rstrip(".")
    whole = TEXT.fullmatch(bare)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", whole[1] if whole else bare).rstrip(".")
