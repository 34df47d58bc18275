"""The tests of a programming problem, read from the forms that data sets give them."""

from __future__ import annotations

import ast
import base64
import builtins
import io
import json
import pickle
import re
import sys
import zlib
from collections.abc import Mapping
from typing import Any

from effopd.tasks.code_outputs import same_output, same_value
from effopd.tasks.readers import UnusableRowError

MOST_BYTES = 2**28  # of tests that came compressed
NAMING = ("func_name", "fn_name", "entry_point")  # fields of a JSON object that names the function under test
LAST_DEFINITION = re.compile(r"^def[ \t]+(\w+)[ \t]*\(", re.MULTILINE)
# Builtin functions that tests use themselves. Others that they call may be the functions under test.
USED_BY_TESTS = {
    "abs", "all", "any", "bool", "dict", "enumerate", "filter", "float", "frozenset", "int", "isinstance", "len",
    "list", "map", "print", "range", "repr", "round", "set", "sorted", "str", "tuple", "type", "zip",
}  # fmt: skip
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)  # what parsing a text may raise


def read_tests(value: Any, function: str = "", shown: str = "") -> dict[str, Any]:
    """Tests in the one form kept, from the forms that data sets use.

    `{"inputs", "outputs"}` with or without `fn_name` (APPS, TACO, Eurus), a list of `{"input", "output"}` (Codeforces,
    LiveCodeBench) or lists of both (CodeContests), or assertions as Python text or a list of texts (MBPP, HumanEval).
    Text that holds such a value as JSON, as Python or compressed (LiveCodeBench) stands for it. `function` names the
    function under test, if the data do; `shown` is the code that the problem shows. Raises UnusableRowError if it is
    none of these, or holds nothing that could fail.
    """
    value = _unpacked(value)
    if isinstance(value, str):
        return _read_assertions(value, function, shown)
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return _read_assertions("\n".join(value), function, shown)
    try:
        tests = _read_pairs(*_inputs_and_outputs(value, function))
        json.dumps(tests)
    except (ValueError, TypeError, RecursionError):
        raise UnusableRowError("arguments or results that are not JSON") from None
    if tests["kind"] == "stdin" and all(same_output("", output) for output in tests["outputs"]):
        raise UnusableRowError("tests that cannot fail: no output is expected")
    if tests["kind"] == "calls" and all(same_value(None, result) or result == [None] for result in tests["outputs"]):
        raise UnusableRowError("tests that cannot fail: no result is expected")
    return tests


def read_function(value: Any) -> str:
    """The name of the function under test: a text, or the field of a JSON object that names it. "" if there is none."""
    value = _unpacked(value)
    if isinstance(value, Mapping):
        value = next((value[name] for name in NAMING if value.get(name)), "")
    name = value.rsplit(".", 1)[-1].strip().removesuffix("()") if isinstance(value, str) else ""
    return name if name.isidentifier() else ""


def _unpacked(value: Any) -> Any:
    """The value that a text holds as JSON, compressed, or as a Python literal; the text itself if it holds none."""
    for _ in range(3):  # JSON in JSON
        if not isinstance(value, str):
            break
        for read in (json.loads, _decompressed, _literal):
            try:
                value = read(value)
                break
            except NOT_PYTHON:
                continue
        else:
            break
    return value


def _literal(text: str) -> Any:
    if not text.lstrip().startswith(("[", "{", "(")):
        raise ValueError
    return ast.literal_eval(text.strip())


def _decompressed(text: str) -> Any:
    """JSON text behind base64, zlib and pickle: of the last, nothing but a plain text is read."""
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), MOST_BYTES)
        found = _TextUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # damaged pickles raise anything
        raise ValueError(str(error)) from error
    if not isinstance(found, str):
        raise ValueError
    return json.loads(found)


class _TextUnpickler(pickle.Unpickler):
    """Unpickles values of builtin types alone: it loads no class and calls nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(str(pid))


def _inputs_and_outputs(value: Any, function: str) -> tuple[list[Any], list[Any], str]:
    """Inputs, expected outputs and the function to call, "" for programs. Raises UnusableRowError."""
    if isinstance(value, (list, tuple)) and all(
        isinstance(item, Mapping) and {"input", "output"} <= item.keys() for item in value
    ):
        kinds = {item.get("testtype") for item in value}
        if "stdin" in kinds:
            function = ""
        elif "functional" in kinds and not function:
            raise UnusableRowError("calls of a function that nothing names: set `columns.function`")
        return [item["input"] for item in value], [item["output"] for item in value], function
    if isinstance(value, Mapping) and {"input", "output"} <= value.keys() and "inputs" not in value:
        value = {**value, "inputs": value["input"], "outputs": value["output"]}
        if not isinstance(value["inputs"], list):
            value |= {"inputs": [value["inputs"]], "outputs": [value["outputs"]]}
    if not isinstance(value, Mapping) or not {"inputs", "outputs"} <= value.keys():
        raise UnusableRowError("no tests, or none of a known form")
    return value["inputs"], value["outputs"], str(value.get("fn_name") or "")


def _read_pairs(inputs: Any, outputs: Any, function: str) -> dict[str, Any]:
    if not isinstance(inputs, (list, tuple)) or not isinstance(outputs, (list, tuple)) or len(inputs) != len(outputs):
        raise UnusableRowError("no tests, or not as many outputs as inputs")
    if not inputs:
        raise UnusableRowError("no tests, or not as many outputs as inputs")
    if not function:
        if any(None in (x if isinstance(x, (list, tuple)) else [x]) for x in outputs):
            raise UnusableRowError("an expected output that is null")
        return {"kind": "stdin", "inputs": [_as_text(x) for x in inputs], "outputs": [_as_text(x) for x in outputs]}
    as_text = isinstance(inputs[0], str)  # arguments as lines of JSON; results are then JSON too
    arguments = [[json.loads(line) for line in x.splitlines() if line.strip()] if as_text else x for x in inputs]
    if not all(isinstance(given, (list, tuple)) for given in arguments):
        raise TypeError
    results = [json.loads(x) if isinstance(x, str) and as_text else x for x in outputs]
    return {"kind": "calls", "function": function, "inputs": [list(given) for given in arguments], "outputs": results}


def _as_text(value: Any) -> str:
    """Input or output as text: lists are lines, null is no text."""
    if isinstance(value, (list, tuple)):
        return "\n".join(map(_as_text, value))
    return "" if value is None else str(value)


def _read_assertions(text: str, function: str, shown: str) -> dict[str, Any]:
    """Assertions, with what is needed to run them. Raises UnusableRowError if they are none."""
    try:
        tree = ast.parse(text)
        compile(tree, "tests.py", "exec")
    except NOT_PYTHON:
        raise UnusableRowError("tests that are neither JSON nor Python") from None
    if not any(_can_fail(node) for node in ast.walk(tree)):
        raise UnusableRowError("tests without an assertion")
    tests: dict[str, Any] = {"kind": "asserts", "tests": text}
    if preamble := _preamble(shown):
        tests["preamble"] = preamble
        function = function or (LAST_DEFINITION.findall(shown) or [""])[-1]
    if _checks_candidate(tree):
        tests["candidate"] = True
        function = function or (LAST_DEFINITION.findall(shown) or [""])[-1]
        if not function:
            raise UnusableRowError("tests of a `candidate` that nothing names: set `columns.function`")
    names, modules = _names(tree)
    if not names and not function:  # then it is one that has the name of a builtin
        called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        called &= set(dir(builtins))
        likely = called if len(called) == 1 else called - USED_BY_TESTS
        names = sorted(likely) if len(likely) == 1 else []
    return {**tests, "function": function, "names": names, "modules": modules}


def _can_fail(node: ast.AST) -> bool:
    asserts = isinstance(node, ast.Attribute) and node.attr.lower().startswith("assert")
    return asserts or isinstance(node, (ast.Assert, ast.Raise))


def _checks_candidate(tree: ast.Module) -> bool:
    """Whether tests define `check` with one argument, and never call it."""
    defined = any(isinstance(n, ast.FunctionDef) and n.name == "check" and len(n.args.args) == 1 for n in tree.body)
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    return defined and not any(call.func.id == "check" for call in calls if isinstance(call.func, ast.Name))


def _names(tree: ast.Module) -> tuple[list[str], list[str]]:
    """The names that tests use and neither define nor find among the builtins; those of modules apart."""
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            own |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            own.add(node.arg)
    loaded = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    names = {node.id for node in loaded} - own - set(dir(builtins))
    holders = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    bare = {node.id for node in loaded if node not in holders}
    modules = {name for name in names - bare if name in sys.stdlib_module_names}
    return sorted(names - modules), sorted(modules)


def _preamble(shown: str) -> str:
    """The code that a problem shows, if it is a Python program of functions or imports (HumanEval)."""
    try:
        tree = ast.parse(shown)
    except NOT_PYTHON:
        return ""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
    return shown if any(isinstance(node, kinds) for node in tree.body) else ""


def reference_program(solution: Any, shown: str) -> str:
    """A reference solution: a text, or the first of a list (as JSON, in TACO). "" if there is none.

    One that is no program but continues what the problem shows (HumanEval) is put behind it.
    """
    if isinstance(solution, str) and solution.lstrip().startswith("["):
        solution = _unpacked(solution)
    if isinstance(solution, list):
        solution = solution[0] if solution else ""
    if not isinstance(solution, str) or _is_python(solution) or not _is_python(shown + solution):
        return solution if isinstance(solution, str) else ""
    return shown + solution


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except NOT_PYTHON:
        return False
    return True


def questions(tests: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the harness is told of assertions: with the solution, before it runs; and then, of the tests."""
    before = {"preamble": tests["preamble"]} if "preamble" in tests else {}
    wanted = ("tests", "function", "names", "modules", "preamble", "candidate")
    return before, {name: tests[name] for name in wanted if name in tests}


def idle_program(tests: Mapping[str, Any]) -> str:
    """A program that has whatever assertions ask for, and in which nothing does anything."""
    lines = [
        "class Idle:",
        "    def __init__(self, *given, **named): pass",
        "    def __getattr__(self, name): return idle",
        "def idle(*given, **named): return None",
    ]
    wanted = {*tests["names"], *([tests["function"]] if tests["function"] else [])}
    lines += [f"{name} = {'Idle' if name[:1].isupper() else 'idle'}" for name in sorted(wanted)]
    return "\n".join(lines)
