"""Mathematics: the boxed answer of a completion is compared with the reference by math-verify."""

from __future__ import annotations

import json
import os
import queue
import re
import select
import subprocess
import sys
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from effopd.common.errors import UserError
from effopd.tasks import math_worker
from effopd.tasks.base import Problem, Verdict
from effopd.tasks.boxed import last_boxed
from effopd.tasks.dataset import DatasetTask
from effopd.tasks.readers import Row, UnusableRowError
from effopd.tasks.sources import text_at

SECONDS = 5.0  # for one comparison; SymPy can take for ever over a short formula
START_SECONDS = 120.0
NUMBER = re.compile(r"[-+]?[0-9]{1,30}(\.[0-9]{1,30}|/[1-9][0-9]{0,30})?")
TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\{([^{}\\]*)\}")
LONGEST_ANSWER = 1000  # characters; what is longer is no final answer, and slow to parse


class MathTask(DatasetTask):
    """Problems whose answer is a number, formula, set, interval, matrix or short text."""

    parallel = True

    def __init__(self, section: Mapping[str, Any]) -> None:
        super().__init__(section)
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()

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
        """Reward 1 where the last boxed answer equals the reference, as text or by math-verify."""
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
        """Ask a worker of this process, which is killed and replaced where it takes too long."""
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker()
        if worker.owner != os.getpid():  # made before a fork: its pipes are the other process's too
            return self._compare(reference, answer)
        reply = worker.ask({"reference": reference, "answer": answer})
        if reply is None:
            worker.end()
            return False, f"the answer could not be compared with the reference within {SECONDS:g} s"
        self._idle.put(worker)
        return bool(reply["equal"]), str(reply["reason"])


class _Worker:
    """A process that compares answers. math-verify limits its time by signals, which only a main thread has."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-m", math_worker.__name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        if self._line(START_SECONDS) is None:
            self.end()
            raise UserError(
                "the process that runs math-verify did not start. Its own message is above; most often memory is short."
            )

    def ask(self, question: Mapping[str, str]) -> dict[str, Any] | None:
        """The reply, or None where there was none in time."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._line(SECONDS)
        try:
            return None if line is None else json.loads(line)
        except ValueError:  # a library wrote to its output
            return None

    def _line(self, seconds: float) -> bytes | None:
        """The next line of the process. Its lines are short and whole: one that begins in time also ends."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return (self.process.stdout.readline() or None) if ready else None

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def _plain(answer: str) -> str:
    r"""An answer without what never matters: a final full stop, dollar signs, a `\text{}` around it, and white space.

    White space between digits stays.
    """
    bare = answer.replace("$", "").strip().rstrip(".")
    whole = TEXT.fullmatch(bare)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", whole[1] if whole else bare).rstrip(".")
