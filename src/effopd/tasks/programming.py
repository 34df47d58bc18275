"""Programming problems: the last Python block of a completion must pass the problem's tests, in a sandbox."""

from __future__ import annotations

import json
import marshal
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from effopd.common.formatting import one_line
from effopd.common.progress import say
from effopd.sandbox.client import Limits, Outcome, Sandbox, borrowed
from effopd.tasks import code_wire, harness
from effopd.tasks.base import Problem, Verdict
from effopd.tasks.code_blocks import NoProgramError, program_in
from effopd.tasks.code_outputs import read_value, same_output, same_value
from effopd.tasks.code_tests import idle_program, questions, read_function, read_tests, reference_program
from effopd.tasks.dataset import DatasetTask
from effopd.tasks.readers import Row, UnusableRowError
from effopd.tasks.sources import text_at, value_at

SHOWN_ERROR = 200  # characters of a program's own error in a reason
HARNESS = (code_wire, harness)  # what runs around a solution, in this order
# For checking the data, which do not depend on the settings of the sandbox.
CHECKED_AT_ONCE = 64  # rows in one process of the sandbox
CHECK_SECONDS = 5.0  # for the tests of one row
CHECK_LIMITS = Limits(
    cpu_seconds=int(2 * CHECK_SECONDS), wall_seconds=CHECKED_AT_ONCE * CHECK_SECONDS, memory_mb=1024, file_mb=16,
    processes=16, open_files=64, output_kb=4096,
)  # fmt: skip


class CodeTask(DatasetTask):
    """Problems with tests: standard input and output, calls of a function, or assertions."""

    parallel = True

    def read_row(self, row: Row, columns: Mapping[str, Any]) -> tuple[Problem, str]:
        text = text_at(row, columns["problem"])
        if not text:
            raise UnusableRowError("no problem")
        starter = text_at(row, columns["starter"]) if "starter" in columns else ""
        function = read_function(value_at(row, columns["function"])) if "function" in columns else ""
        raw = row[columns["problem"]] if isinstance(row.get(columns["problem"]), str) else text
        tests = read_tests(value_at(row, columns["tests"]), function, starter or raw)
        if "solution" in columns and (solution := reference_program(value_at(row, columns["solution"]), raw)):
            tests["solution"] = solution
        shown = f"{text}\n\nStart from this code:\n```python\n{starter}\n```" if starter else text
        return Problem(shown, json.dumps(tests)), text

    def unusable(self, problems: Sequence[Problem]) -> list[str]:
        """Why the tests of each problem tell nothing; "" for those that fail on programs that do nothing.

        Tests by output and by function are looked at when a row is read; assertions are run, on an empty program and on
        one whose functions return None. Many at a time in each sandbox.
        """
        answers = [json.loads(problem.answer) for problem in problems]
        asserted = [number for number, tests in enumerate(answers) if tests["kind"] == "asserts"]
        parts = [asserted[start : start + CHECKED_AT_ONCE] for start in range(0, len(asserted), CHECKED_AT_ONCE)]
        reasons = [""] * len(problems)
        done = 0
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for part, found in zip(parts, pool.map(lambda p: _check([answers[n] for n in p]), parts), strict=True):
                for number, reason in zip(part, found, strict=True):
                    reasons[number] = reason
                done += len(part)
                if done % (16 * CHECKED_AT_ONCE) == 0:
                    say(f"ran the tests of {done} of {len(asserted)} problems on programs that do nothing")
        return reasons

    def verify(self, problem: Problem, completion: str) -> Verdict:
        """Reward 1 if the last Python block passes all tests; tests end at the first that fails.

        The reason names the walls that stood around the program. Raises SandboxError if there is no sandbox.
        """
        try:
            code = program_in(completion)
        except NoProgramError as error:
            return Verdict(0.0, str(error))
        settings = self.section["sandbox"]
        limits = Limits(**{name: settings[name] for name in Limits.__dataclass_fields__})
        tests = _tests(json.loads(problem.answer), code, settings["max_tests"])
        with borrowed(limits, required=settings["isolation"] == "namespaces") as sandbox:
            if sandbox.refusal:
                _say_once(f"programs run without namespaces: {sandbox.refusal}")
            walls = "+".join([*sandbox.isolation, "limits"])
            for number, test in enumerate(tests, 1):
                if fault := test(sandbox):
                    return Verdict(0.0, one_line(f"test {number} of {len(tests)}: {fault} [{walls}]"))
        return Verdict(1.0, f"passes {len(tests)} tests [{walls}]")

    def right_completion(self, problem: Problem) -> str | None:
        """The reference solution or, if there is none, a program that knows the tests; None for assertions."""
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
        if tests["kind"] == "asserts":
            return _block(idle_program(tests))
        return _block("print('no answer')\nraise SystemExit(0)")


Test = Callable[[Sandbox], str]  # runs one test; "" if it is passed, else why not


def _tests(tests: Mapping[str, Any], code: str, most: int) -> list[Test]:
    """The first tests of a problem, to be run on a solution."""
    if tests["kind"] == "asserts":
        return [_assertions(code, tests)]
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
        question = {"function": function, "arguments": arguments}
        outcome = sandbox.run(_harness("call"), _line({"code": code}), _line(question))
        if fault := _fault(outcome):
            return fault
        try:
            result = read_value(outcome.result)
        except ValueError as error:
            return f"no result ({error})" if outcome.result.strip() else "no result"
        wrapped = isinstance(expected, list) and len(expected) == 1 and same_value(result, expected[0])
        return "" if wrapped or same_value(result, expected) else "wrong result"

    return run


def _assertions(code: str, tests: Mapping[str, Any]) -> Test:
    """All assertions in one process, which decides, and never runs anything of the solution: that has its own."""
    before, question = questions(tests)

    def run(sandbox: Sandbox) -> str:
        outcome = sandbox.run(_harness("judge"), _line({"code": code, **before}), _line(question))
        if fault := _fault(outcome):
            return fault
        try:
            report = json.loads(outcome.result)
        except ValueError:
            return "the program ended the tests"
        return "" if report["passed"] else str(report["reason"])

    return run


def _check(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why the assertions of each problem tell nothing; "" if they fail on programs that do nothing."""
    lines = [_line(CHECK_SECONDS)]
    for tests in answers:
        before, question = questions(tests)
        for code in ("", idle_program(tests)):
            lines.append(_line({"solution": {"code": code, **before}, "question": question}))
    with borrowed(CHECK_LIMITS) as sandbox:
        outcome = sandbox.run(_harness("check"), b"".join(lines))
    reports = []
    for line in outcome.result.splitlines():
        try:
            reports.append(json.loads(line) or {"passed": False})
        except ValueError:
            break  # tests of the data have broken the run
    if len(reports) != 2 * len(answers):
        if len(answers) == 1:
            return ["tests that end whatever runs them"]
        return [reason for tests in answers for reason in _check([tests])]
    return [_why_unusable(*pair) for pair in zip(reports[::2], reports[1::2], strict=True)]


def _why_unusable(empty: Mapping[str, Any], idle: Mapping[str, Any]) -> str:
    if empty["passed"]:
        return "tests that cannot fail: an empty program passes them"
    if idle["passed"]:
        return "tests that cannot fail: a program that does nothing passes them"
    return f"tests that cannot run: {idle['reason']}" if idle.get("tests") else ""


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


@cache
def _harness(mode: str) -> str:
    """The program that does `mode` (see `harness.main`): the modules of `HARNESS`, which the sandbox does not have."""
    texts = {part.__name__: Path(str(part.__file__)).read_text(encoding="utf-8") for part in HARNESS}
    compiled = {name: marshal.dumps(compile(text, name, "exec")) for name, text in texts.items()}  # by the same Python
    return f"""
import marshal, sys, types
for name, code in {compiled!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(marshal.loads(code), module.__dict__)
module.main({mode!r})
"""


def _fault(outcome: Outcome) -> str:
    """Why a program did not end well; "" if it did."""
    if outcome.ended:
        return f"ended by its limit ({outcome.ended})"
    if outcome.code == 0:
        return ""
    lines = outcome.error.decode(errors="replace").strip().splitlines()
    how = f"exit status {outcome.code}" if outcome.code > 0 else f"killed by signal {-outcome.code}"
    return f"{how}: {lines[-1][:SHOWN_ERROR]}" if lines else how


def _block(code: str) -> str:
    return f"```python\n{code}\n```"


@cache
def _say_once(text: str) -> None:
    say(text)
