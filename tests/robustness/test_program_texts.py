"""What surrounds programs: where they stand in completions, how outputs are compared, and rows whose tests cannot fail."""

import json
import math
import os
import sys
import tempfile
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.sandbox import client, folders
from effopd.sandbox.client import Limits, Sandbox, SandboxError, close_idle
from effopd.tasks.code_blocks import NoProgramError, program_in
from effopd.tasks.code_outputs import read_value, same_output, same_value
from effopd.tasks.code_tests import read_tests
from effopd.tasks.dataset import UnusableRowError
from effopd.tasks.programming import CodeTask
from sandboxes import FULL, sandbox_with

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)

# Where the program is

RIGHT = "x = 1\nprint(x)"
DOCSTRING = 'def f():\n    """Example:\n\n    ```\n    >>> f()\n    ```\n    """\n    return 1'
OUTER = '''TEXT = """
```python
print(2)
```
"""
print(1)'''
COMPLETIONS = {
    "a block": f"So:\n```python\n{RIGHT}\n```\nDone.",
    "other names of Python": f"```Python3.11\n{RIGHT}\n```",
    "a title behind the language": f"```py title=main.py\n{RIGHT}\n```",
    "braces around the language": f"```{{.python}}\n{RIGHT}\n```",
    "no language": f"```\n{RIGHT}\n```",
    "tildes": f"~~~python\n{RIGHT}\n~~~",
    "a longer fence": f"`````python\n{RIGHT}\n`````",
    "a closing fence that is longer": f"```python\n{RIGHT}\n`````",
    "within a list": "1. So\n   ```python\n   x = 1\n   print(x)\n   ```\n2. Done",
    "behind a list's number": "1. ```python\n   x = 1\n   print(x)\n   ```",
    "behind bullets": "- - ```python\n    x = 1\n    print(x)\n    ```",
    "deep within lists": "            ```python\n            x = 1\n            print(x)\n            ```",
    "with tabs": "\t```python\n\tx = 1\n\tprint(x)\n\t```",
    "more indented than its fence": "```python\n    x = 1\n    print(x)\n```",
    "text behind it": f"```python\n{RIGHT}\n```\nIt prints:\n```text\n1\n```",
    "output without a language behind it": f"```python\n{RIGHT}\n```\nIt prints:\n```\n1\n```",
    "a command behind it": f"```python\n{RIGHT}\n```\n```bash\npython main.py\n```",
    "another language behind it": f"```python\n{RIGHT}\n```\n```cpp\nint main() {{}}\n```",
    "a draft before it": f"```python\nprint(2)\n```\nBetter:\n```python\n{RIGHT}\n```",
    "one that is cut behind it": f"```python\n{RIGHT}\n```\nAgain:\n```python\nprint(",
    "in a block of Markdown": f"````markdown\nSo:\n```python\n{RIGHT}\n```\n````",
    "carriage returns": f"```python\n{RIGHT}\n```\n".replace("\n", "\r\n"),
    "words behind the closing fence": f"```python\n{RIGHT}\n``` and more",
    "a fence was forgotten": f"```python\nprint(2)\n```python\n{RIGHT}\n```",
    "fences within sentences": f"Use ```` ``` ```` here\n```python\n{RIGHT}\n```\nand ```code``` there",
    "thoughts before it": f"<think>\n```python\nprint(2)\n```\n</think>\n```python\n{RIGHT}\n```",
}  # fmt: skip


@pytest.mark.parametrize("completion", COMPLETIONS.values(), ids=COMPLETIONS)
def test_the_program_is_found(completion):
    assert program_in(completion).replace("\r", "").strip("\n") == RIGHT


@pytest.mark.parametrize(
    "program",
    [
        DOCSTRING,
        OUTER,
        "x = '```'\nprint(x)",
        "s = r'\\'\n'''```\n'''",
        '# it\'s\nx = """\n```\n"""',
        'a = b\'"""\'\nb = 1',
    ],
)
@pytest.mark.parametrize("indent", ["", "   "])
def test_a_fence_within_a_string_ends_nothing(program, indent):
    lines = ["```python", *program.split("\n"), "```", "Then:", "```text", "3", "```"]
    assert program_in("\n".join(indent + line for line in lines)) == program


@pytest.mark.parametrize(
    ("completion", "why"),
    [
        ("print(1)", "no complete code block"),
        ("", "no complete code block"),
        ("```python\nprint(1)", "no complete code block"),
        ("``` print(1) ```", "no complete code block"),
        ("```cpp\nint x;\n```\n```rust\n```", "is in rust"),
    ],
)
def test_no_program_is_found(completion, why):
    with pytest.raises(NoProgramError, match=why):
        program_in(completion)


PIECES = st.sampled_from(["```", "~~~", "````", "python", "text", "\n", "   ", "- ", "1. ", '"""', "'''", "'", "\\", "#", "x", "\r", "\t", "{", "markdown"])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=60).map("".join))
def test_whatever_is_written_there_is_a_program_or_a_reason(text):
    try:
        program = program_in(text)
    except NoProgramError as error:
        program = str(error)
    assert isinstance(program, str)


@pytest.mark.parametrize("part", ["```python\n", "~~~text\n", '```\n"""\n', "'\\", "- ", "````markdown\n", "   ```\n"])
def test_long_completions_take_no_time(part):
    start = time.process_time()
    try:
        program_in("```python\n" + part * 20000)
    except NoProgramError:
        pass
    assert time.process_time() - start < 5


# What is equal

HUGE = math.factorial(200)


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (HUGE, 0.5, False),
        (10**100, 1e100, True),
        (10**400, 0.5, False),
        (0.5, 10**400, False),
        (10**400, math.inf, False),
        (10**400, 10**400, True),
        (10**400, 10**400 + 1, False),
        (1e308, math.inf, False),
        (math.inf, 1e308, False),
        (math.inf, math.inf, True),
        (-math.inf, math.inf, False),
        (math.nan, math.nan, True),
        (math.nan, 0.0, False),
        (0.0, math.nan, False),
        (3, math.inf, False),
        (0.0, 1e-7, True),  # absolute: a relative tolerance would tell these apart
        (1e-9, 0.0, True),
        (0.0, 1e-5, False),
        (1e9 + 1.0, 1e9, True),  # relative: an absolute tolerance would tell these apart
        (1e9 + 1e4, 1e9, False),
        (True, 1.0, False),
        (False, 0.0, False),
        (None, 0.0, False),
        (None, False, False),
        (True, True, True),
        ("1.0", 1.0, False),
        ([1.0, [2.0]], [1, [2 + 1e-8]], True),
        ({"a": [None]}, {"a": [None]}, True),
        ({"a": None}, {"a": 0}, False),
        ("\ud800", "\ud800", True),
    ],
)
def test_values(found, expected, same):
    assert same_value(found, expected) is same
    assert same_value([[found]], [[expected]]) is same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("inf", "inf", True),
        ("1", "inf", False),
        ("1e300", "inf", False),
        ("inf", "1e400", False),
        ("1.0", "1e400", False),
        ("1e400", "1.0", False),
        ("1e400", "1e400", True),
        ("1e400", "10e399", True),
        ("1e400", "1e401", False),
        ("-1e400", "1e400", False),
        ("nan", "nan", True),
        ("nan", "1.0", False),
        ("nan.", "1.0", False),
        ("1e9999999999999999999999", "1e400", False),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000 + ".0", "1.0", False),
        ("0.0000001", "0.0", True),
        ("1000000001.0", "1000000000.0", True),
        ("1_000.0", "1000.0", False),
        ("\u0661.0", "1.0", False),
        ("0x1p3", "8.0", False),
        ("1e5", "100000", True),
        ("e", "e", True),
        ("True", "1.0", False),
    ],
)
def test_outputs(found, expected, same):
    assert same_output(found, expected) is same


@pytest.mark.parametrize(
    "text", ["[" * 50000 + "]" * 50000, '{"a":' * 50000 + "1" + "}" * 50000, "", "[1", "nul", b"\xff\xfe"]
)
def test_what_cannot_be_read_is_no_value(text):
    with pytest.raises(ValueError, match="."):
        read_value(text)


def test_long_numbers_are_read_as_they_are_written():
    assert same_value(read_value("9" * 5000), read_value("9" * 5000))
    assert not same_value(read_value("9" * 5000), read_value("9" * 4999 + "8"))
    assert not same_value(read_value("9" * 5000), 0.5)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@settings(max_examples=50, deadline=None)
@given(VALUES, VALUES)
def test_a_value_equals_itself_and_no_more_than_it_should(one, two):
    assert same_value(one, json.loads(json.dumps(one)))
    assert same_value(one, two) in (True, False)
    assert not same_value(one, [one])


# Rows whose tests cannot fail

CAN_FAIL = [
    ["assert add(1, 2) == 3"],
    "def test_add():\n    assert add(1, 2) == 3",
    "def check(candidate):\n    assert candidate(1, 2) == 3",
    "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 2), 3)",
    "if __name__ == '__main__':\n    assert add(1, 2) == 3",
    ["assert sum(10, 15) == 6"],
    ["assert Stack().push(1) == [1]"],
    ["assert math.isclose(add(1, 2), 3)"],
]
CANNOT_FAIL = {
    "in a function that nobody calls": "def run():\n    assert add(1, 2) == 3",
    "in a class that nobody runs": "class Checks:\n    def test(self):\n        assert add(1, 2) == 3",
    "behind a guard": "if __name__ == 'tests':\n    assert add(1, 2) == 3",
    "every failure is caught": "try:\n    assert add(1, 2) == 3\nexcept Exception:\n    print('failed')",
    "nothing is compared": "add(1, 2)\nassert True",
    "the tests leave first": "import sys\nadd(1, 2)\nsys.exit()\nassert add(1, 2) == 3",
    "doing nothing is right": ["assert add(1, 2) is None"],
    "doing nothing is not wrong": ["assert add(1, 2) != 3"],
    "a package that is not there": "import numpy\nassert add(1, 2) == numpy.int64(3)",
    "tests that end what runs them": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nassert add(1, 2) == 3",
}


@pytest.fixture
def task():
    with sandbox_with(FULL):
        pass
    yield CodeTask({})
    close_idle()


def rows(tests):
    return [
        CodeTask({}).read_row({"q": "Add.", "t": t, "f": "add"}, {"problem": "q", "tests": "t", "function": "f"})[0]
        for t in tests
    ]


def test_tests_that_cannot_fail_are_found(task, monkeypatch):
    monkeypatch.setattr("effopd.tasks.programming.CHECKED_AT_ONCE", 5)  # so that there are several batches
    reasons = task.unusable(rows([*CAN_FAIL, *CANNOT_FAIL.values()]))
    assert reasons[: len(CAN_FAIL)] == [""] * len(CAN_FAIL)
    for name, reason in zip(CANNOT_FAIL, reasons[len(CAN_FAIL) :], strict=True):
        assert reason.startswith("tests that "), (name, reason)


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ("# assert add(1, 2) == 3", "without an assertion"),
        ("'assert add(1, 2) == 3'", "without an assertion"),
        ({"inputs": ["1", "2"], "outputs": ["", " \n"]}, "cannot fail: no output is expected"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [None]}, "cannot fail: no result is expected"),
        ({"fn_name": "f", "inputs": [[1]], "outputs": [[None]]}, "cannot fail: no result is expected"),
        ({"inputs": ["1", "2"], "outputs": ["1", None]}, "an expected output that is null"),
        ({"inputs": [["1"]], "outputs": [["1", None]]}, "an expected output that is null"),
        ([{"input": "1", "output": None}, {"input": "2", "output": "2"}], "an expected output that is null"),
        ("[{'input': 1, 'output'", "neither JSON nor Python"),
        ([{"input": "1", "output": "1", "testtype": "functional"}], "columns.function"),
        ("def check(candidate):\n    assert candidate(1) == 2", "columns.function"),
        ({"fn_name": "f", "inputs": ["1"], "outputs": ["9" * 5000]}, "not JSON"),
        ({"fn_name": "f", "inputs": [{"x": 1}], "outputs": [1]}, "not JSON"),
        ("[" * 5000, "neither JSON nor Python"),
    ],
)  # fmt: skip
def test_rows_that_are_read_as_unusable(tests, why):
    with pytest.raises(UnusableRowError, match=why):
        CodeTask({}).read_row({"q": "Add.", "t": tests}, {"problem": "q", "tests": "t"})


def test_make_data_counts_them(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tests = [["assert add(1, 2) == 3"], CANNOT_FAIL["every failure is caught"], "# assert add(1, 2) == 3"]
    content = "".join(json.dumps({"problem": f"Add {n}.", "tests": t}) + "\n" for n, t in enumerate(tests))
    (tmp_path / "rows.jsonl").write_text(content)
    columns = {"problem": "problem", "tests": "tests"}
    source = {"files": ["rows.jsonl"], "columns": columns, "where": {}}
    tables, facts = CodeTask({"seed": 0, "splits": {"test": {"sources": [source]}}}).make_tables()
    assert list(tables["test"]["problem"]) == ["Add 0."]
    assert facts["sources"][0]["unusable"] == {
        "tests that cannot fail: an empty program passes them": 1,
        "tests without an assertion": 1,
    }


# What programs see, and what they leave

PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@settings(max_examples=100, deadline=None)
@given(st.lists(PATHS, min_size=1, max_size=3), st.lists(PATHS, max_size=4))
def test_nothing_hidden_is_shown(tmp_path_factory, readable, hidden):
    top = tmp_path_factory.getbasetemp() / "tree"
    for one in "abc":
        for two in "abc":
            (top / one / two / one / two).mkdir(parents=True, exist_ok=True)
            (top / one / two / "file").touch()
    readable = [f"{top}{path}" for path in readable if os.path.exists(f"{top}{path}")]
    hidden = [f"{top}{path}" for path in hidden]
    shown, _ = folders.without_hidden(readable, hidden)
    for folder, _, names in os.walk(top):
        for path in (folder, *(f"{folder}/{name}" for name in names)):
            above = [other for other in (*readable, *hidden) if folders.is_below(path, other)]
            nearest = max(above, key=len, default="")
            if any(folders.is_below(path, other) for other in shown):
                assert nearest in readable
            elif nearest in readable:  # only folders that hold something hidden are not shown as a whole
                assert any(folders.is_below(other, path) for other in hidden)


def test_a_project_among_the_systems_libraries_is_not_seen(tmp_path, monkeypatch):
    system = tmp_path / "lib"
    project = system / "project"
    project.mkdir(parents=True)
    (project / "answers").write_text("expected output")
    (system / "library").write_text("library")
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    monkeypatch.chdir(project)
    monkeypatch.setattr("effopd.sandbox.client.SYSTEM_PATHS", (*client.SYSTEM_PATHS, str(system)))
    monkeypatch.setattr("effopd.sandbox.client._readable", client._readable.__wrapped__)
    try:
        sandbox = Sandbox(Limits(2, 10, 256, 4, 8, 32, 64), required=True)
    except SandboxError as error:
        pytest.skip(str(error))
    with sandbox:
        code = f"import os\nfor folder, _, names in os.walk({str(system)!r}):\n    for name in names: print(open(folder + '/' + name).read())"
        assert (outcome := sandbox.run(code)).output == b"library\n", outcome


@pytest.mark.parametrize("levels", [10, 3000])
def test_folders_are_removed_however_deep_they_are(tmp_path, levels):
    place = os.getcwd()
    (tmp_path / "kept").touch()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path  # removing folders takes long on some disks
    top = tempfile.mkdtemp(dir=memory)
    try:
        os.chdir(top)
        for _ in range(levels):
            os.mkdir("a")
            os.symlink(tmp_path, "link")
            os.chdir("a")
        open("file", "w").close()
    finally:
        os.chdir(place)
    if levels > folders.MOST_LEVELS:
        with pytest.raises(folders.TooMuchError):
            folders.size_of(top)
    folders.remove(top)
    assert not os.path.exists(top)
    assert (tmp_path / "kept").exists()


def test_an_input_that_is_null_is_no_text():
    tests = read_tests({"inputs": [None, [None, "a"]], "outputs": ["1", "2"]})
    assert tests["inputs"] == ["", "\na"]
