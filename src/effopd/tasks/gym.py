"""Procedural problems of reasoning-gym's data sets, judged by their own scorers."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from effopd.common.errors import UserError
from effopd.common.formatting import one_line
from effopd.common.progress import say
from effopd.common.randomness import generator, seed_of
from effopd.tasks import gym_worker
from effopd.tasks.base import Problem, Task, Verdict
from effopd.tasks.boxed import last_boxed
from effopd.tasks.gym_settings import check_installed, label_of, shares_of
from effopd.tasks.splits import HELD_OUT_FIRST, content_hash
from effopd.tasks.workers import Workers

if TYPE_CHECKING:
    import pandas as pd

SECONDS = 10.0  # to score an answer
MAKE_SECONDS = 600.0  # to make a block of problems
BLOCK = 16  # problems that a worker makes at once; divides a chunk
PATIENCE = 4 * gym_worker.CHUNK  # draws in a row without a new problem, after which a data set has no more
OPENING, CLOSING = "<answer>", "</answer>"
WRONG_ANSWERS = ("7919", "False", "True")  # some scorers take any text for one of two answers


@dataclass(frozen=True)
class Drawn:
    """A problem of a data set, and what it is called there."""

    problem: Problem
    source: str


class GymTask(Task):
    """Problems of one or more data sets in proportion to their weights."""

    parallel = True

    def __init__(self, section: Mapping[str, Any]) -> None:
        check_installed()
        self.section = section  # to verify, its name and `partial_credit` are enough
        # Some data sets choose from sets of text, whose order is that of the hash seed.
        self._workers = Workers(gym_worker.__name__, "reasoning-gym", {"PYTHONHASHSEED": "0"})

    def make_tables(self) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """The splits, with columns `problem`, `answer`, `difficulty` and `source`; no two problems are the same.

        Each split draws from seeds of its own, the held-out ones first: a split's problems do not depend on the sizes
        of those after it. The facts count what was drawn and left out by split and source. Raises UserError if a
        data set has too few distinct problems, or cannot make any.
        """
        import pandas as pd

        taken: set[str] = set()  # content hashes
        tables, facts = {}, []
        for split in (name for name in HELD_OUT_FIRST if name in self.section["splits"]):
            entries = self.section["datasets"]
            counts = shares_of(self.section["splits"][split], [entry["weight"] for entry in entries])
            rows: list[Drawn] = []
            for place, (entry, count) in enumerate(zip(entries, counts, strict=True)):
                found, left_out = self._draw(split, place, entry, count, taken)
                rows += found
                facts.append({"split": split, "source": label_of(entry), "kept": count, **left_out})
            order = generator(self.section["seed"], "order", split).permutation(len(rows)).tolist()
            rows = [rows[place] for place in order]
            tables[split] = pd.DataFrame(
                {
                    "problem": [row.problem.text for row in rows],
                    "answer": [row.problem.answer for row in rows],
                    "difficulty": pd.Series([row.problem.difficulty for row in rows], dtype=float),
                    "source": [row.source for row in rows],
                }
            )
        return {split: tables[split] for split in self.section["splits"]}, {"sources": facts}

    def _draw(
        self, split: str, place: int, entry: Mapping[str, Any], count: int, taken: set[str]
    ) -> tuple[list[Drawn], dict[str, Any]]:
        """`count` problems of an entry that are not among those `taken`, which they join."""
        blocks = self._blocks(split, entry)
        found: list[Drawn] = []
        unusable: Counter[str] = Counter()
        duplicates = in_vain = 0
        while len(found) < count and in_vain < PATIENCE:
            wanted = -(-(count - len(found)) // BLOCK)
            fresh = []
            for one in self._made([next(blocks) for _ in range(wanted)], place, entry):
                hashed = content_hash(one["question"])
                if hashed in taken:
                    duplicates += 1
                else:
                    taken.add(hashed)
                    fresh.append((hashed, _problem(one, entry)))
            reasons = self.unusable([problem for _, problem in fresh])
            usable = [pair for pair, reason in zip(fresh, reasons, strict=True) if not reason]
            unusable.update(reason for reason in reasons if reason)
            in_vain = 0 if usable else in_vain + wanted * BLOCK
            kept, beyond = usable[: count - len(found)], usable[count - len(found) :]
            found += [Drawn(problem, label_of(entry)) for _, problem in kept]
            taken -= {hashed for hashed, _ in beyond}  # other splits and entries may have them
        name = f"{entry['name']} (`task.datasets.{place}`)"
        left_out = ", ".join(f"{number} {reason}" for reason, number in unusable.most_common())
        if len(found) < count:
            raise UserError(
                f"{name}: the {split} split asks for {count} problems, and there are only {len(found)} distinct ones "
                f"that no other split has{f'; left out: {left_out}' if left_out else ''}. Lower `task.splits.{split}` "
                f"or `task.datasets.{place}.weight`, or give it other `parameters`."
            )
        if unusable:
            say(one_line(f"{name}, {split}: left out: {left_out}"))
        return found, {"duplicates": duplicates, "unusable": dict(unusable)}

    def _blocks(self, split: str, entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What to ask workers for, endlessly. The problems do not depend on an entry's label, weight or place."""
        what = {"name": entry["name"], "parameters": entry["parameters"]}
        named = json.dumps(what, sort_keys=True)
        chunk = 0
        while True:
            seed = seed_of(self.section["seed"], "reasoning_gym", split, named, chunk) % 2**31
            for start in range(0, gym_worker.CHUNK, BLOCK):
                yield {**what, "seed": seed, "start": start, "stop": start + BLOCK}
            chunk += 1

    def _made(
        self, blocks: Sequence[Mapping[str, Any]], place: int, entry: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """The problems of the blocks, in their order."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            replies = list(pool.map(lambda block: self._workers.ask(block, MAKE_SECONDS), blocks))
        for reply in replies:
            if reply is None or "error" in reply:
                late = f"{BLOCK} of them took more than {MAKE_SECONDS:g} s or too much memory"
                raise UserError(
                    f"{entry['name']} cannot make problems with `task.datasets.{place}.parameters` "
                    f"({one_line(late if reply is None else reply['error'], 300)}). Change them."
                )
            yield from reply["problems"]

    def unusable(self, problems: Sequence[Problem]) -> list[str]:
        """Why each problem is none, as only trying its scorer tells; "" for those that are."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(self._why_unusable, problems))

    def _why_unusable(self, problem: Problem) -> str:
        reference = json.loads(problem.answer)["reference"]
        if reference is not None and answer_of(self.right_completion(problem) or "") != reference.strip():
            return "whose reference holds a mark of answers"
        if reference is not None and self._score(problem, reference.strip())[0] < 1:
            return "whose scorer rejects the reference"
        if self._score(problem, self._wrong_answer(problem))[0] == 1:
            return "whose scorer accepts any answer"
        return ""

    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Reward 1 if the data set's scorer gives the answer all; with `partial_credit`, what it gives."""
        answer = answer_of(completion)
        if not answer:
            return Verdict(0.0, f"no answer: nothing stands in {OPENING}{CLOSING} or is boxed")
        score, reason = self._score(problem, answer)
        if score == 1:
            return Verdict(1.0, "right")
        return Verdict(score if self.section.get("partial_credit") else 0.0, reason or f"the scorer gives {score:g}")

    def _score(self, problem: Problem, answer: str) -> tuple[float, str]:
        """What the scorer gives an answer, and why it is nothing if it fails."""
        question = {"question": problem.text, "reference": problem.answer, "answer": answer}
        reply = self._workers.ask(question, SECONDS)
        if reply is None:
            return 0.0, f"the answer could not be scored within {SECONDS:g} s"
        return float(reply["score"]), str(reply["reason"])

    def right_completion(self, problem: Problem) -> str | None:
        reference = json.loads(problem.answer)["reference"]
        return None if reference is None else f"{OPENING}{reference}{CLOSING}"

    def wrong_completion(self, problem: Problem) -> str:
        return f"{OPENING}{self._wrong_answer(problem)}{CLOSING}"

    def _wrong_answer(self, problem: Problem) -> str:
        """Of a few answers, the first that the scorer gives least."""
        return min(WRONG_ANSWERS, key=lambda answer: self._score(problem, answer)[0])


def _problem(made: Mapping[str, Any], entry: Mapping[str, Any]) -> Problem:
    """A problem that can be scored wherever its row is."""
    by = {"dataset": entry["name"], "parameters": entry["parameters"]}
    answer = {**by, "entry": made["entry"], "reference": made["reference"]}
    return Problem(made["question"], json.dumps(answer, sort_keys=True, ensure_ascii=False), made["difficulty"])


def answer_of(completion: str) -> str | None:
    r"""The answer that a completion gives; None if it gives none.

    It stands between the last `<answer>` that is closed and its `</answer>`, wherever boxes are; the box alone where
    one is all that stands there. Without these marks it is what the last complete `\boxed{}` holds.
    """
    end = completion.rfind(CLOSING)
    start = completion.rfind(OPENING, 0, max(end, 0))
    if start < 0:
        return last_boxed(completion)
    start += len(OPENING)
    answer = completion[start : completion.find(CLOSING, start)].strip()
    boxed = last_boxed(answer) if answer.startswith("\\boxed{") and answer.endswith("}") else None
    return answer if boxed is None or answer != f"\\boxed{{{boxed}}}" else boxed
