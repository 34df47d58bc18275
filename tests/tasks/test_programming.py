"""The code task: extraction, the forms of tests, grading, and attempts to be graded well without solving anything."""

import json
import secrets
import sys
import textwrap

import pytest

from effopd.tasks.base import Problem
from effopd.tasks.code_outputs import same_output, same_value
from effopd.tasks.dataset import UnusableRowError
from effopd.tasks.programming import CodeTask
from sandboxes import FALLBACK, FULL, sandbox_with

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)

SANDBOX = {
    "isolation": "auto", "max_tests": 20, "cpu_seconds": 2, "wall_seconds": 120, "memory_mb": 256, "file_mb": 4,
    "processes": 8, "open_files": 32, "output_kb": 256,
}  # fmt: skip
COLUMNS = {"problem": "question", "tests": "tests"}
SUM = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
ADD = {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, [7]]}
ASSERTIONS = ["assert add(1, 2) == 3", "assert add(3, 4) == 7"]


@pytest.fixture(scope="module")
def task():
    """The task, where this machine has a sandbox."""
    with sandbox_with(FULL):
        pass
    return CodeTask({"seed": 0, "sandbox": SANDBOX})


def problem(tests, **row):
    return CodeTask({}).read_row({"question": "Add.", "tests": tests, **row}, {**COLUMNS, **{k: k for k in row}})[0]


def block(code, language="python"):
    return f"So:\n```{language}\n{textwrap.dedent(code)}\n```\nDone."


def judged(task, tests, code):
    verdict = task.verify(problem(tests), block(code))
    return verdict.reward, verdict.reason.partition(" [")[0]


@pytest.mark.parametrize(
    "tests", [SUM, json.dumps(SUM), [{"input": "1 2", "output": "3"}, {"input": "3 4", "output": "7"}]]
)
def test_programs_are_judged_by_their_output(task, tests):
    right = "print(sum(map(int, input().split())))"
    assert judged(task, tests, right) == (1, "passes 2 tests")
    assert judged(task, tests, "print(3)") == (0, "test 2 of 2: wrong output")
    assert judged(task, tests, "print('3 ')\nraise SystemExit(5)") == (0, "test 1 of 2: exit status 5")
    assert judged(task, tests, "print(1 / 0)") == (0, "test 1 of 2: exit status 1: ZeroDivisionError: division by zero")


@pytest.mark.parametrize("tests", [ADD, {**ADD, "inputs": ["1\n2", "3\n4"], "outputs": ["3", "7"]}])
def test_functions_are_judged_by_what_they_return(task, tests):
    right = "def add(a: int, b: Optional[int]) -> int:\n    print('noise')\n    return a + b"
    assert judged(task, tests, right) == (1, "passes 2 tests")
    method = "class Solution:\n    def add(self, a: List[int], b):\n        return a + b"
    assert judged(task, tests, method) == (1, "passes 2 tests")
    assert judged(task, tests, "def add(a, b): return a * b + 1") == (0, "test 2 of 2: wrong result")
    assert judged(task, tests, "def subtract(a, b): return 1") == (
        0,
        "test 1 of 2: exit status 1: LookupError: there is no function add",
    )
    assert judged(task, tests, "def add(a, b): return {a, b}")[1].endswith(
        "Object of type set is not JSON serializable"
    )


@pytest.mark.parametrize("tests", [ASSERTIONS, "\n".join(ASSERTIONS)])
def test_assertions(task, tests):
    assert judged(task, tests, "def add(a, b): return a + b") == (1, "passes 1 tests")
    assert judged(task, tests, "def add(a, b): return a - b") == (0, "test 1 of 1: AssertionError")


def test_the_reason_names_the_walls(task):
    assert task.verify(problem(SUM), block("print(3)")).reason == f"test 2 of 2: wrong output [{'+'.join(FULL)}+limits]"


def test_fallback_walls_are_named_and_hold(monkeypatch):
    """The same verdicts if there are no namespaces."""
    with sandbox_with(FALLBACK) as sandbox:
        sandbox.refusal = "tried without"
        monkeypatch.setattr("effopd.tasks.programming.borrowed", lambda limits, required: _Kept(sandbox))
        task = CodeTask({"seed": 0, "sandbox": {**SANDBOX, "cpu_seconds": 1}})
        verdict = task.verify(problem(SUM), block("print(sum(map(int, input().split())))"))
        assert verdict.reason == "passes 2 tests [landlock+seccomp+limits]"
        assert judged(task, ADD, "def add(a, b): return a + b") == (1, "passes 2 tests")
        assert judged(task, ASSERTIONS, "raise SystemExit(0)") == (
            0,
            "test 1 of 1: the program ended before the tests did (exit status 0)",
        )


class _Kept:
    def __init__(self, sandbox):
        self.sandbox = sandbox

    def __enter__(self):
        return self.sandbox

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("no code", "no answer: no complete code block"),
        ("```python\nprint(3)", "no answer: no complete code block"),
        ("print(3) ```", "no answer: no complete code block"),
        (block("int main() {}", "cpp"), "the last code block is in cpp, not in Python"),
        (block("text", "text") + "\n" + block("int main() {}", "C++"), "the last code block is in C++, not in Python"),
    ],
)
def test_completions_without_a_program(task, completion, reason):
    assert task.verify(problem(SUM), completion).reason == reason


def test_the_last_block_counts_wherever_it_stands(task):
    right = "print(sum(map(int, input().split())))"
    for text in (
        f"{block('print(0)')}\n{block(right)}",
        f"1. First\n   ```python\n{right}\n   ```",
        f"```\n{right}\n```",
        f"```py title=x\n{right}\n```",
        f"{block(right)}\nand `inline` ``` and more",
    ):
        assert task.verify(problem(SUM), text).reward == 1, text
    assert task.verify(problem(SUM), f"{block(right)}\n{block('print(0)')}").reward == 0


CHEATS = {
    "leaves with success": "import os, sys\nsys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves on the first call": "import os\ndef add(a, b): os._exit(0)",
    "raises success on the first call": "def add(a, b): raise SystemExit(0)",
    "leaves from a handler": "import atexit, os\natexit.register(os._exit, 0)\nraise ValueError",
    "ignores failures": "import sys\nsys.excepthook = lambda *_: None\ndef add(a, b): return 0",
    "replaces exit": "import sys, os\nos._exit = sys.exit = lambda *_: None\ndef add(a, b): return 0",
    "replaces json": "import json\njson.dumps = lambda *_: '3'\njson.loads = lambda *_: {}\ndef add(a, b): return 0",
    "replaces exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *_: None\ndef add(a, b): return 0",
    "replaces writing": "import os\nwrite = os.write\nos.write = lambda fd, text: write(fd, b'3')\ndef add(a, b): return 0",
    "writes a result itself": "import os\nos.write(3, b'true')\nos._exit(0)",
    "reads its own frames": "import sys\nframe = sys._getframe()\nwhile frame:\n    print(dict(frame.f_locals).get('question'))\n    frame = frame.f_back\nraise SystemExit(0)",
    "reads what is still to come": "import os, sys\nprint(os.read(0, 1 << 20))\nsys.exit(0)",
    "closes everything": "import os\nfor n in range(64):\n    try: os.close(n)\n    except OSError: pass\nos._exit(0)",
    "kills": "import os\nos.kill(os.getpid(), 9)",
}  # fmt: skip


@pytest.mark.parametrize("code", CHEATS.values(), ids=CHEATS)
@pytest.mark.parametrize(
    "tests", [SUM, {**ADD, "outputs": [33, 77]}, ASSERTIONS], ids=["program", "function", "assertions"]
)
def test_what_solves_nothing_gets_nothing(task, tests, code):
    assert judged(task, tests, code)[0] == 0


@pytest.mark.parametrize("make", [
    lambda token: {"inputs": ["x"], "outputs": [token]},
    lambda token: {"fn_name": "add", "inputs": [["x"]], "outputs": [token]},
], ids=["program", "function"])  # fmt: skip
def test_expected_answers_never_enter_the_sandbox(task, make):
    """A solution that looks for the expected answer everywhere it can, knowing how it begins."""
    token = f"expected-{secrets.token_hex(16)}"
    spy = """
    import glob, os, re
    found = []
    def search(content):
        found.extend(m for m in re.findall(b"expected" + b"-[0-9a-f]{32}", content))
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        for name in ("environ", "cmdline"):
            try: search(open(f"/proc/{process}/{name}", "rb").read())
            except OSError: pass
        try:
            with open(f"/proc/{process}/mem", "rb") as memory:
                for line in open(f"/proc/{process}/maps"):
                    low, high = (int(x, 16) for x in line.split()[0].split("-"))
                    try:
                        memory.seek(low)
                        search(memory.read(high - low))
                    except (OSError, OverflowError, ValueError): pass
        except OSError: pass
    for root, _, names in os.walk("."):
        for name in names: search(open(os.path.join(root, name), "rb").read())
    answer = found[0].decode() if found else "not found"
    def add(x): return answer
    print(answer)
    """
    verdict = task.verify(problem(make(token)), block(spy))
    assert verdict.reward == 0
    assert "wrong" in verdict.reason, verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "ended by its limit (cpu time)"),
        ("while True: print('x' * 100)", "ended by its limit (output)"),
        ("x = bytearray(1 << 30)", "exit status 1: MemoryError"),
        ("def f(): f()\nf()", "exit status 1: RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_programs_that_go_wrong(task, code, reason):
    assert judged(task, SUM, code) == (0, f"test 1 of 2: {reason}")


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("3\n", "3", True),
        ("3  \n\n\n", "3\n", True),
        ("1  2\n3", "1 2\n3 ", True),
        ("1\n2", "1 2", False),
        ("", "3", False),
        ("0.3333333", "0.33333333333", True),
        ("0.333", "0.3333333", False),
        ("1e6", "1000000", True),
        ("1000001", "1000000", False),
        ("1.0", "1", True),
        ("YES", "Yes", False),
        ("nan", "1.0", False),
        ("3.0 x", "3.0 y", False),
    ],
)
def test_when_outputs_are_the_same(found, expected, same):
    assert same_output(found, expected) is same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ([1, [2, 3]], [1, [2, 3]], True),
        ([1, 2], [2, 1], False),
        ({"a": 0.1 + 0.2}, {"a": 0.3}, True),
        ({"a": 1}, {"b": 1}, False),
        (True, 1, False),
        (1.0, 1, True),
        ("1", 1, False),
        (None, None, True),
        (10**30, 10**30 + 1, False),
    ],
)
def test_when_values_are_the_same(found, expected, same):
    assert same_value(found, expected) is same


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ({"inputs": [], "outputs": []}, "no tests, or not as many outputs as inputs"),
        ({"inputs": ["1"], "outputs": []}, "no tests, or not as many outputs as inputs"),
        ({"fn_name": "f", "inputs": ["not JSON"], "outputs": ["1"]}, "arguments or results that are not JSON"),
        ({"fn_name": "f", "inputs": [5], "outputs": ["1"]}, "arguments or results that are not JSON"),
        ("{]", "tests that are neither JSON nor Python"),
        ("print(1)", "tests without an assertion"),
        ("", "tests without an assertion"),
        (None, "no tests, or none of a known form"),
        ({"cases": []}, "no tests, or none of a known form"),
    ],
)
def test_rows_without_usable_tests(tests, reason):
    with pytest.raises(UnusableRowError, match=reason):
        problem(tests)


def test_only_so_many_tests_are_run(task):
    many = {"inputs": ["x"] * 30, "outputs": ["1"] * 20 + ["2"] * 10}
    assert judged(task, many, "print(1)") == (1, "passes 20 tests")


def test_starting_code_is_shown():
    text = problem(ADD, starter="def add(a, b):").text
    assert text == "Add.\n\nStart from this code:\n```python\ndef add(a, b):\n```"
    assert problem(ADD, starter="").text == "Add."


def test_references_are_accepted_and_others_rejected(task):
    solution = "import sys\nprint(sum(map(int, sys.stdin.read().split())), \"'quoted'\")"
    quoted = {"inputs": ["1 2", ""], "outputs": ["3 'quoted'", "0 'quoted'"]}
    problems = [problem(SUM), problem(ADD), problem(ASSERTIONS), problem(quoted), problem(quoted, solution=solution)]
    problems.append(problem(ASSERTIONS, solution=json.dumps(["def add(a, b):\n    return a + b"])))
    assert task.self_check(problems) == []
    wrong = problem(SUM, solution="print(4)")
    assert len(task.self_check([wrong])) == 1
    assert "its own reference answer is rejected (test 1 of 2: wrong output" in task.self_check([wrong])[0]


def test_many_completions_are_judged_at_once(task):
    codes = [f"print({n})" for n in range(1, 9)]
    one = {"inputs": [""], "outputs": ["3"]}
    verdicts = task.verify_all([problem(one)] * 8, [block(code) for code in codes])
    assert [v.reward for v in verdicts] == [0, 0, 1, 0, 0, 0, 0, 0]


def test_text_that_cannot_be_encoded_is_no_crash(task):
    assert task.verify(problem({"inputs": ["\ud800"], "outputs": ["1"]}), block("print(1)")).reward == 1
    assert task.verify(problem(SUM), block("print('\ud800')")).reward == 0
    assert task.verify(problem(SUM), block("x = '\x00'")).reward == 0


def test_answers_are_json():
    answer = json.loads(problem(SUM).answer)
    assert answer == {"kind": "stdin", "inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
    assert isinstance(problem(SUM), Problem)
