"""Programming problems: the last code block of a completion must pass the problem's tests, in a sandbox."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from effopd.runtime.progress import say
from effopd.sandbox.client import Limits, Outcome, Sandbox
from effopd.tasks import harness
from effopd.tasks.base import Problem, Verdict
from effopd.tasks.dataset import DatasetTask, UnusableRowError
from effopd.tasks.sources import Row, text_at, value_at

BLOCK = re.compile(r"^[ \t]*```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
PYTHON = ("", "python", "python3", "py")
TOLERANCE = 1e-6  # absolute or relative, between numbers with a decimal point
SHOWN_ERROR = 200  # characters of a program's own error in a reason


class CodeTask(DatasetTask):
    """Problems with tests: standard input and output, calls of a function, or assertions."""

    parallel = True

    def read_row(self, row: Row, columns: Mapping[str, Any]) -> tuple[Problem, str]:
        text = text_at(row, columns["problem"])
        if not text:
            raise UnusableRowError("no problem")
        tests = _read_tests(value_at(row, columns["tests"]))
        if "solution" in columns and (solution := _first_text(value_at(row, columns["solution"]))):
            tests["solution"] = solution
        starter = text_at(row, columns["starter"]) if "starter" in columns else ""
        shown = f"{text}\n\nStart from this code:\n```python\n{starter}\n```" if starter else text
        return Problem(shown, json.dumps(tests)), text

    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Reward 1 where the last Python block passes all tests; tests end at the first that fails.

        The reason names the walls that stood around the program. Raises SandboxError where there is no sandbox.
        """
        blocks = BLOCK.findall(completion)
        if not blocks:
            return Verdict(0.0, "no answer: no complete code block")
        language, code = blocks[-1]
        if language.lower() not in PYTHON:
            return Verdict(0.0, f"the last code block is in {language}, not in Python")
        settings = self.section["sandbox"]
        limits = Limits(**{name: settings[name] for name in Limits.__dataclass_fields__})
        tests = _tests(json.loads(problem.answer), code, settings["max_tests"])
        with Sandbox(limits, required=settings["isolation"] == "namespaces") as sandbox:
            if sandbox.refusal:
                _say_once(f"programs run without namespaces: {sandbox.refusal}")
            walls = "+".join([*sandbox.isolation, "limits"])
            for number, test in enumerate(tests, 1):
                if fault := test(sandbox):
                    return Verdict(0.0, f"test {number} of {len(tests)}: {fault} [{walls}]")
        return Verdict(1.0, f"passes {len(tests)} tests [{walls}]")

    def right_completion(self, problem: Problem) -> str | None:
        """The reference solution or, where there is none, a program that knows the tests; None for assertions."""
        tests = json.loads(problem.answer)
        if "solution" in tests:
            return _block(tests["solution"])
        if tests["kind"] == "asserts":
            return None
        most = self.section["sandbox"]["max_tests"]
        inputs, outputs = tests["inputs"][:most], tests["outputs"][:most]
        keys = inputs if tests["kind"] == "stdin" else [json.dumps(given) for given in inputs]
        known = json.dumps(dict(zip(keys, outputs, strict=True)))
        table = f"import json, sys\ntable = json.loads({known!r})\n"
        if tests["kind"] == "stdin":
            return _block(f"{table}sys.stdout.write(table[sys.stdin.read()])")
        return _block(f"{table}def {tests['function']}(*given):\n    return table[json.dumps(given)]")

    def wrong_completion(self, problem: Problem) -> str:
        tests = json.loads(problem.answer)
        if tests["kind"] == "calls":
            return _block(f"def {tests['function']}(*given):\n    return 'no answer'")
        return _block("print('no answer')\nraise SystemExit(0)")


Test = Callable[[Sandbox], str]  # runs one test; "" where it is passed, else why not


def _tests(tests: Mapping[str, Any], code: str, most: int) -> list[Test]:
    """The first tests of a problem, to be run on a solution."""
    if tests["kind"] == "asserts":
        return [_assertions(code, tests["tests"])]
    pairs = list(zip(tests["inputs"], tests["outputs"], strict=True))[:most]
    if tests["kind"] == "stdin":
        return [_program(code, given, expected) for given, expected in pairs]
    return [_call(code, tests["function"], given, expected) for given, expected in pairs]


def _program(code: str, given: str, expected: str) -> Test:
    """The expected output never enters the sandbox."""

    def run(sandbox: Sandbox) -> str:
        outcome = sandbox.run(code, given.encode(errors="replace"))
        return _fault(outcome) or (
            "" if same_output(outcome.output.decode(errors="replace"), expected) else "wrong output"
        )

    return run


def _call(code: str, function: str, arguments: list[Any], expected: Any) -> Test:
    """The expected result never enters the sandbox, and what comes back is plain data."""

    def run(sandbox: Sandbox) -> str:
        outcome = _ask(sandbox, code, {"function": function, "arguments": arguments})
        if fault := _fault(outcome):
            return fault
        try:
            result = json.loads(outcome.result)
        except ValueError:
            return "no result"
        wrapped = isinstance(expected, list) and len(expected) == 1 and same_value(result, expected[0])
        return "" if wrapped or same_value(result, expected) else "wrong result"

    return run


def _assertions(code: str, tests: str) -> Test:
    """All assertions in one process, which must then write a token that the solution was not given."""

    def run(sandbox: Sandbox) -> str:
        token = secrets.token_hex(16)
        outcome = _ask(sandbox, code, {"tests": tests, "token": token})
        passed = outcome.result.strip() == token.encode()
        return _fault(outcome) or ("" if passed else "the program ended before the tests did")

    return run


def _ask(sandbox: Sandbox, code: str, question: Mapping[str, Any]) -> Outcome:
    lines = [json.dumps(part).encode() + b"\n" for part in (code, question)]
    return sandbox.run(_harness(), *lines)


@cache
def _harness() -> str:
    return Path(harness.__file__).read_text(encoding="utf-8")


def _fault(outcome: Outcome) -> str:
    """Why a program did not end well; "" where it did."""
    if outcome.ended:
        return f"ended by its limit ({outcome.ended})"
    if outcome.code == 0:
        return ""
    lines = outcome.error.decode(errors="replace").strip().splitlines()
    how = f"exit status {outcome.code}" if outcome.code > 0 else f"killed by signal {-outcome.code}"
    return f"{how}: {lines[-1][:SHOWN_ERROR]}" if lines else how


def same_output(found: str, expected: str) -> bool:
    """Whether two outputs are equal line by line, but for white space and trailing blank lines.

    Words that are both numbers, one with a decimal point or exponent, need only agree to 1e-6.
    """
    lines, wanted = found.rstrip().split("\n"), expected.rstrip().split("\n")
    if len(lines) != len(wanted):
        return False
    for line, other in zip(lines, wanted, strict=True):
        words, others = line.split(), other.split()
        if len(words) != len(others) or not all(map(_same_word, words, others)):
            return False
    return True


def _same_word(word: str, other: str) -> bool:
    if word == other:
        return True
    if not any(mark in word + other for mark in ".eE"):
        return False
    try:
        return _close(float(word), float(other))
    except ValueError:
        return False


def same_value(found: Any, expected: Any) -> bool:
    """Whether two JSON values are equal, numbers that are not whole to 1e-6. True and 1 differ."""
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(same_value, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same_value(found[key], expected[key]) for key in found)
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, float) or isinstance(expected, float):
        numbers = isinstance(found, (int, float)) and isinstance(expected, (int, float))
        return numbers and _close(float(found), float(expected))
    return bool(found == expected)


def _close(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= TOLERANCE * max(1.0, abs(other))


def _read_tests(value: Any) -> dict[str, Any]:
    """Tests in the one form kept, from the forms that data sets use.

    `{"inputs", "outputs"}` with or without `fn_name` (APPS, TACO, Eurus), a list of `{"input", "output"}`
    (Codeforces), or assertions as Python text or a list of texts (MBPP, HumanEval). JSON text stands for its value.
    Raises UnusableRowError where it is none of them.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return _read_assertions(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return _read_assertions("\n".join(value))
    if isinstance(value, list) and all(
        isinstance(item, Mapping) and {"input", "output"} <= item.keys() for item in value
    ):
        value = {"inputs": [item["input"] for item in value], "outputs": [item["output"] for item in value]}
    if not isinstance(value, Mapping) or not {"inputs", "outputs"} <= value.keys():
        raise UnusableRowError("no tests, or none of a known form")
    inputs, outputs = value["inputs"], value["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise UnusableRowError("no tests, or not as many outputs as inputs")
    if not value.get("fn_name"):
        return {"kind": "stdin", "inputs": [_as_text(x) for x in inputs], "outputs": [_as_text(x) for x in outputs]}
    try:
        arguments = [[json.loads(line) for line in x.split("\n")] if isinstance(x, str) else list(x) for x in inputs]
        results = [json.loads(x) if isinstance(x, str) and isinstance(inputs[0], str) else x for x in outputs]
    except (ValueError, TypeError):
        raise UnusableRowError("arguments or results that are not JSON") from None
    return {"kind": "calls", "function": str(value["fn_name"]), "inputs": arguments, "outputs": results}


def _read_assertions(text: str) -> dict[str, Any]:
    try:
        compile(text, "tests.py", "exec")
    except (SyntaxError, ValueError):
        raise UnusableRowError("tests that are neither JSON nor Python") from None
    if "assert" not in text:
        raise UnusableRowError("tests without an assertion")
    return {"kind": "asserts", "tests": text}


def _as_text(value: Any) -> str:
    """Input or output as text: lists are lines."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _first_text(value: Any) -> str:
    """A reference solution: text, or the first of a list of texts (as JSON, in TACO)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


@cache
def _say_once(text: str) -> None:
    say(text)
