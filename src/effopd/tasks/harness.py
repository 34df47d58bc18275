"""What runs in the sandbox around a solution: it is loaded as a module, then a function of it is called, or tested.

Imports the standard library and `code_wire` alone.
"""

import bisect
import builtins
import collections
import functools
import heapq
import itertools
import json
import math
import os
import re
import resource
import signal
import string
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from effopd.tasks.code_wire import GoneError, Peer, Proxy

RESULT = 3  # the descriptor on which the sandbox hands results back
SOLUTION = "solution"
# Modules whose names programs may use without importing them, as on the sites that such problems are from.
# Of two with one name the later counts: `Counter` is the class, not the hint.
PRELOADED = (typing, bisect, collections, functools, heapq, itertools, math, re, string, sys)
PR_SET_DUMPABLE = 4
SHOWN_ERROR = 200


def main(mode: str) -> None:
    """What a sandbox is asked for: `call` a function, `judge` by assertions, or `check` many assertions."""
    {"call": call, "judge": judge, "check": check}[mode]()


def call() -> None:
    """Load a solution, say so; read a question, and write what the function returned.

    What is asked arrives after the solution has been loaded, so that nothing that it does on loading can answer it.
    """
    # held here, so that a solution that replaces them replaces them for itself
    read, write, loads, dumps = sys.stdin.buffer.readline, os.write, json.loads, json.dumps
    space = load(**loads(read()))
    write(RESULT, b"\n")
    question = loads(read())
    result = find(space, question["function"])(*question["arguments"])
    write(RESULT, dumps(result).encode())


def load(code: str, preamble: str = "") -> dict[str, Any]:
    """The module of a solution; in it the names of `PRELOADED` are builtin. `preamble` is run before it."""
    module = types.ModuleType(SOLUTION)
    module.__file__ = f"{SOLUTION}.py"
    sys.modules[SOLUTION] = module  # for dataclasses, pickle and the like
    module.__dict__["__builtins__"] = {**preloaded(), **vars(builtins)}
    if preamble:
        exec(compile(preamble, "preamble.py", "exec"), module.__dict__)
    with open(module.__file__, "w", encoding="utf-8", errors="replace") as file:  # for inspect.getsource
        file.write(code)
    exec(compile(code, module.__file__, "exec"), module.__dict__)
    return module.__dict__


def preloaded() -> dict[str, Any]:
    """The names that a program finds without importing them."""
    names: dict[str, Any] = {}
    for module in PRELOADED:
        public = getattr(module, "__all__", None) or [n for n in dir(module) if not n.startswith("_")]
        names |= {n: getattr(module, n) for n in public if module is not sys}
        names[module.__name__] = module
    return names


def find(space: dict[str, Any], name: str) -> Any:
    """A function of a module, or a method of its class `Solution`. Raises LookupError."""
    if name in space:
        return space[name]
    if "Solution" in space:
        return getattr(space["Solution"](), name)
    raise LookupError(f"there is no function {name}")


# The solution has a process of its own, which knows nothing of the tests. The tests run here, if nothing of the
# solution ever runs.


def judge() -> None:
    """Run a problem's tests on a solution, and write the report."""
    read = sys.stdin.buffer.readline

    def ask() -> dict[str, Any]:
        os.write(RESULT, b"\n")
        value: dict[str, Any] = json.loads(read())
        return value

    report = judged(json.loads(read()), ask)
    os.write(RESULT, json.dumps(report).encode())


def judged(solution: dict[str, str], ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The report on a solution: whether it `passed`, else why not, and whether only the `tests` are to blame.

    `ask` returns the tests, once the process that runs the solution has been started without them.
    """
    import ctypes  # which takes time, and is not needed to call a function

    sys.path[:] = [path for path in sys.path if path]  # the solution could put modules into the work folder
    sys.dont_write_bytecode = True
    (reading, its_writing), (its_reading, writing) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.close(writing)
        serve(its_reading, its_writing)
    os.close(its_reading)
    os.close(its_writing)
    if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):  # out of its reach: memory, descriptors
        return {"passed": False, "reason": "the tests cannot be hidden from the program"}
    peer = Peer(reading, writing, trusts=False)
    try:
        peer.send(solution)
        question = ask()
        if (loaded := peer.receive()) != "loaded":
            return {"passed": False, "reason": _text(loaded)}
        fault = run_tests(peer, **question)
    except GoneError:
        peer.gone, fault = True, None
    if peer.gone:
        return {"passed": False, "reason": _end_of(child)}
    return {"passed": not fault, **(fault or {})}


def _end_of(child: int) -> str:
    """How the process of a solution that is gone has ended."""
    for descriptor in range(RESULT + 1, 64):
        try:
            os.close(descriptor)  # so that it ends, if all that it did was to say what no solution says
        except OSError:
            pass
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    limit = resource.getrlimit(resource.RLIMIT_CPU)[0]
    if code == -signal.SIGXCPU or (code < 0 and usage.ru_utime + usage.ru_stime >= limit):
        return "ended by its limit (cpu time)"
    how = f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
    return f"the program ended before the tests did ({how})"


def serve(reading: int, writing: int) -> NoReturn:
    """What the solution's process does: load it, and do what the tests ask for until they have ended."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(RESULT)
    if "" not in sys.path:
        sys.path.insert(0, "")
    peer = Peer(reading, writing, trusts=True)
    try:
        solution = peer.receive()
        try:
            space = load(**solution)
        except Exception as error:
            peer.send(f"{type(error).__name__}: {error}"[:SHOWN_ERROR])
            os._exit(1)
        peer.send("loaded")
        shared = preloaded()

        def find_for_tests(name: str) -> tuple[bool, Any]:
            found = find(space, name)
            return found is shared.get(name), found

        peer.held.append(find_for_tests)
        while True:
            _, *question = peer.receive()
            peer.answer(*question)
    except BaseException:
        pass
    os._exit(0)


def run_tests(
    peer: Peer,
    tests: str,
    function: str = "",
    names: Sequence[str] = (),
    modules: Sequence[str] = (),
    preamble: str = "",
    candidate: bool = False,
) -> dict[str, Any] | None:
    """Run tests. Returns None if all passed, else the `reason`, and whether only the `tests` are to blame.

    `names` are those that the tests take from the solution, `modules` those that they use without importing them.
    With `candidate` they define `check(candidate)` without calling it: it is called with the solution's `function`.
    """
    finder = peer.proxy(0)
    known = preloaded()
    space = _test_module(finder, known)
    try:
        if preamble:
            exec(compile(preamble, "preamble.py", "exec"), space)
        space.update({name: __import__(name) for name in modules})
        for name in {*names, *([function] if function else [])}:
            if name == function or name not in space:
                found = _ask(finder, name, known)
                if found is not None:
                    space[name] = found
        before = dict(space)
        exec(compile(tests, "tests.py", "exec"), space)
        own = {name: value for name, value in space.items() if before.get(name) is not value}
        if candidate:
            space["check"](space[function])
        run_defined(own)
    except GoneError:
        raise
    except SystemExit as error:
        return None if not error.code and peer.failed is None else {"reason": f"the tests ended with {error.code!r}"}
    except BaseException as error:
        blame = isinstance(error, (ImportError, SyntaxError))
        return {"reason": f"{type(error).__name__}: {_text(error)}".rstrip(": "), "tests": blame}
    return None if peer.failed is None else {"reason": f"AssertionError: {_text(peer.failed)}".rstrip(": ")}


def _test_module(finder: Proxy, known: dict[str, Any]) -> dict[str, Any]:
    """The names of the module that the tests run as: the main one, so that what is guarded by that runs."""
    solution = types.ModuleType(SOLUTION)

    def get(name: str) -> Any:
        found = None if name.startswith("__") else _ask(finder, name, known)
        if found is None:
            raise AttributeError(name)
        return found

    solution.__dict__["__getattr__"] = get
    sys.modules[SOLUTION] = solution
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    sys.argv = ["tests.py"]
    return module.__dict__


def _ask(finder: Proxy, name: str, known: dict[str, Any]) -> Any:
    """An object of the solution or, if it has none of that name or the standard library's, our own; else None."""
    try:
        standard, found = finder(name)
    except Exception:
        return known.get(name)
    return known[name] if standard and name in known else found


def run_defined(own: dict[str, Any]) -> None:
    """Run what tests define for a runner of tests: functions `test_...()` and test cases."""
    for name, value in own.items():
        if name.startswith("test") and isinstance(value, types.FunctionType) and not value.__code__.co_argcount:
            value()
        elif isinstance(value, type) and value.__module__ == "__main__":
            run_case(name, value)


def run_case(name: str, case: type) -> None:
    """Run a class of tests: one of unittest, or one whose name begins with Test."""
    unittest = sys.modules.get("unittest")
    if unittest is not None and issubclass(case, unittest.TestCase):
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
        if not result.wasSuccessful():
            raise AssertionError(str([*result.failures, *result.errors][-1:])[-SHOWN_ERROR:])
    elif name.startswith("Test"):
        for test in [attribute for attribute in dir(case) if attribute.startswith("test")]:
            instance = case()
            getattr(instance, "setup_method", lambda: None)()
            getattr(instance, test)()


def _text(value: object) -> str:
    try:
        return " ".join(str(value).split())[:SHOWN_ERROR]
    except Exception:
        return ""


def check() -> None:
    """Judge each line's solution by its tests, and write a line with each report: null if there is none in time."""
    read = sys.stdin.buffer.readline
    seconds = json.loads(read())
    while line := read():
        part = json.loads(line)
        process = os.fork()
        if process == 0:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            report = judged(part["solution"], functools.partial(part.get, "question"))
            os.write(RESULT, json.dumps(report).encode() + b"\n")
            os._exit(0)
        if os.waitpid(process, 0)[1]:
            os.write(RESULT, b"null\n")
