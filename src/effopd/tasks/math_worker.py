"""The process that compares answers with math-verify: a JSON object a line in, one a line out, until its input ends."""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Callable
from typing import Any

from effopd.tasks.math_numbers import compare_numbers_by, in_other_bases, readings, relation_apart

MEMORY_BYTES = 4 * 2**30  # a formula of a few characters can ask for more than any machine has


def comparer() -> Callable[[str, str], tuple[bool, str]]:
    """A function of the reference and a completion's answer that says whether they are equal, and why."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, grader, parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
    grader.sympy_numeric_eq = compare_numbers_by(grader.sympy_numeric_eq)  # also of numbers within sets and intervals
    targets = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    def parsed(answer: str) -> list[Any]:
        return [
            expression
            for reading in readings(answer)
            for expression in parse(f"\\boxed{{{reading}}}", targets, parsing_timeout=None)
        ]

    def compare(reference: str, answer: str) -> tuple[bool, str]:
        if in_other_bases(reference, answer):
            return False, "the boxed answer is in another base than the reference"
        (wanted, reference), (relation, answer) = relation_apart(reference), relation_apart(answer)
        if relation != wanted:
            return False, f"the boxed answer has the relation {relation or '='}, the reference {wanted or '='}"
        gold, found = parsed(reference), parsed(answer)
        if not found:
            return False, "the boxed answer cannot be read as mathematics"
        equal = verify(gold, found, timeout_seconds=None)
        return bool(equal), "right" if equal else "the boxed answer is not the reference"

    return compare


def main() -> None:
    """Compare the pairs of answers that come on standard input, one JSON line each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    sys.set_int_max_str_digits(0)  # time and memory are limited
    compare = comparer()
    compare("1", "\\frac{2}{2}")  # load what is loaded late
    print(flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            equal, reason = compare(question["reference"], question["answer"])
        except Exception as error:  # SymPy raises whatever it likes
            equal, reason = False, f"the boxed answer cannot be compared ({type(error).__name__})"
        print(json.dumps({"equal": equal, "reason": reason}), flush=True)


if __name__ == "__main__":
    main()
