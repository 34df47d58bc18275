"""Programs in the sandbox, in both of its modes: what is right is judged right, what is wrong is not, and nothing ends it.

Each row is judged by the code task as it judges completions. After each attack the same sandbox judges a right program.
"""

import base64
import json
import pickle
import sys
import zlib
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest

from effopd.sandbox.client import close_idle
from effopd.tasks.programming import CodeTask
from sandboxes import FALLBACK, FULL, LIMITS, sandbox_with

if sys.platform != "linux":
    pytest.skip("the sandbox needs Linux", allow_module_level=True)

SETTINGS = {
    **asdict(replace(LIMITS, wall_seconds=3, processes=16, open_files=64)),
    "isolation": "auto",
    "max_tests": 20,
}
ADD = "def add(a, b):\n    return a + b"
ASSERTS = ["assert add(1, 2) == 3", "assert add(3, 4) == 7"]
CALLS = {"fn_name": "add", "inputs": [[3, 4]], "outputs": [7]}
STDIN = {"inputs": ["3 4\n"], "outputs": ["7\n"]}
SUM = "print(sum(map(int, input().split())))"


@pytest.fixture(scope="module", params=[FULL, FALLBACK], ids=["namespaces", "fallback"])
def task(request):
    """The code task, with one sandbox of this mode for all programs."""
    with sandbox_with(request.param, replace(LIMITS, wall_seconds=3, processes=16, open_files=64)) as sandbox:
        sandbox.refusal = ""

        @contextmanager
        def borrowed(limits, required=False):
            yield sandbox

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("effopd.tasks.programming.borrowed", borrowed)
            yield CodeTask({"sandbox": SETTINGS})


@pytest.fixture(scope="module")
def any_task():
    """The code task, with the sandbox that this machine has."""
    yield CodeTask({"sandbox": SETTINGS})
    close_idle()


def read(tests, problem="Add.", **row):
    columns = {"problem": "problem", "tests": "tests", **{name: name for name in row}}
    return CodeTask({}).read_row({"problem": problem, "tests": tests, **row}, columns)[0]


def judge(task, tests, code, **row):
    return task.verify(read(tests, **row), f"```python\n{code}\n```")


# Forms of tests: the row, a right program, and wrong ones.

HUMANEVAL = """
METADATA = {'author': 'x', 'dataset': 'test'}


def check(candidate):
    assert candidate([1.0, 2.0, 3.0], 0.5) == False
    assert candidate([1.0, 2.8, 3.0], 0.3) == True
"""
HUMANEVAL_PROMPT = '''from typing import List


def close(numbers: List[float], threshold: float) -> bool:
    """ Check whether two numbers are closer than the threshold.
    >>> close([1.0, 2.0], 0.5)
    False
    """
'''
CLOSE = "def close(xs, t):\n    return any(abs(a - b) < t for i, a in enumerate(xs) for b in xs[:i])"
POLY = '''import math


def poly(xs: list, x: float):
    return sum([c * math.pow(x, i) for i, c in enumerate(xs)])


def find_zero(xs: list):
    """ find_zero finds one x with poly(xs, x) = 0 """
'''
POLY_CHECK = (
    "def check(candidate):\n    for xs in ([1, 2], [-6, 11]):\n        assert math.fabs(poly(xs, candidate(xs))) < 1e-4"
)
LCB_STDIN = json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}])
LCB_CALLS = json.dumps([
    {"input": '[1, 2]\n"x"', "output": '{"x": 3}', "testtype": "functional"},
    {"input": '[]\n"y"\n', "output": '{"y": 0}', "testtype": "functional"},
])  # fmt: skip
LCB_PRIVATE = base64.b64encode(zlib.compress(pickle.dumps(LCB_CALLS))).decode()
TOTAL = (
    "class Solution:\n    def total(self, xs: List[int], name: str) -> Dict[str, int]:\n        return {name: sum(xs)}"
)
METADATA = json.dumps({"func_name": "total"})
UNITTEST = """
import unittest
class TestAdd(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(1, 2), 3)
if __name__ == '__main__':
    unittest.main()
"""

LRU = """
class LRU(OrderedDict):
    def __init__(self, capacity):
        self.capacity = capacity
    def get(self, key):
        if key not in self: return None
        self.move_to_end(key)
        return self[key]
    def put(self, key, value):
        self[key] = value
        if len(self) > self.capacity: self.popitem(last=False)
"""
STACK = """
def top(s): return s.peek() if isinstance(s, Stack) else None
class Stack(list):
    def push(self, x): self.append(x)
    def peek(self): return self[-1]
"""
OWN_CONTAINERS = """
def own(kind, *given):
    return type('My' + kind.__name__, (kind,), {'method': lambda self: 1})(*given)
class E(defaultdict):
    def __init__(self): super().__init__(list, x=[1])
def f():
    return [own(list, (1, 2)), own(tuple, (1, 2)), own(dict, {'a': 1}), own(set, [1]), own(frozenset, [2]),
            own(bytes, b'x'), own(deque, [1], 2), own(Counter, 'aab'), E()]
"""
POINT = """
from typing import NamedTuple
def kind(p): return 'Point' if isinstance(p, Point) else 'other'
class Point(NamedTuple):
    x: int
    y: int
    def norm(self): return (self.x ** 2 + self.y ** 2) ** 0.5
    def __add__(self, o): return Point(self.x + o.x, self.y + o.y)
"""
TALLY = "class Tally(Counter):\n    def most(self): return max(self, key=self.get)"
MOVED = "def f():\n    d = OrderedDict([(1, 0), (2, 0)])\n    d.move_to_end(1)\n    return d"

FORMS = {
    "asserts": ({"tests": ASSERTS}, ADD, ["def add(a, b):\n    return 3", "pass", "def add(a, b): return None"]),
    "asserts as the text of a Python list": ({"tests": str(ASSERTS)}, ADD, ["def add(a, b): return 3", "pass"]),
    "asserts as JSON": ({"tests": json.dumps(ASSERTS)}, ADD, ["def add(a, b): return 3", "pass"]),
    "HumanEval": ({"tests": HUMANEVAL, "problem": HUMANEVAL_PROMPT, "function": "close"}, CLOSE, ["pass", "def close(x, t): return False"]),
    "HumanEval, nothing names the function": ({"tests": HUMANEVAL, "problem": HUMANEVAL_PROMPT}, CLOSE, ["pass", "def close(x, t): return True"]),
    "HumanEval, an indented continuation": ({"tests": HUMANEVAL, "problem": HUMANEVAL_PROMPT}, HUMANEVAL_PROMPT + "    return any(abs(a - b) < threshold for i, a in enumerate(numbers) for b in numbers[:i])", [HUMANEVAL_PROMPT]),
    "HumanEval, the check calls helpers of the prompt": ({"tests": POLY_CHECK, "problem": POLY}, "def find_zero(xs): return -xs[0] / xs[1]", ["def find_zero(xs): return 0", "def poly(*a): return 0.0\ndef find_zero(xs): return 5"]),
    "check that is called": ({"tests": HUMANEVAL + "\ncheck(close)"}, CLOSE, ["pass", "def close(x, t): return True"]),
    "test functions": ({"tests": "def test_one():\n    assert add(1, 2) == 3\ndef test_two():\n    assert add(3, 4) == 7"}, ADD, ["def add(a, b): return 3", "pass"]),
    "a class of tests": ({"tests": "class TestAdd:\n    def test_one(self):\n        assert add(3, 4) == 7"}, ADD, ["def add(a, b): return 3", "pass"]),
    "unittest": ({"tests": UNITTEST}, ADD, ["def add(a, b): return 4", "pass"]),
    "unittest, not called": ({"tests": UNITTEST.partition("if __name__")[0]}, ADD, ["def add(a, b): return 4", "pass"]),
    "under a main guard": ({"tests": "if __name__ == '__main__':\n    assert add(3, 4) == 7"}, ADD, ["def add(a, b): return 3", "pass"]),
    "imported from the solution": ({"tests": "from solution import add\ndef test_one():\n    assert add(3, 4) == 7"}, ADD, ["def add(a, b): return 3", "pass"]),
    "a function with a builtin's name": ({"tests": ["assert sum(10, 15) == 6"]}, "def sum(a, b):\n    return 6", ["pass", "def sum(a, b): return 7"]),
    "within map": ({"tests": ["assert all(map(lambda c: add(*c) == sum(c), [(1, 2), (3, 4)]))"]}, ADD, ["def add(a, b): raise StopIteration", "def add(a, b): return 3"]),
    "floats by isclose": ({"tests": ["assert math.isclose(f(2), 0.5, rel_tol=1e-6)"]}, "def f(x): return 1 / x", ["def f(x): return x", "import math\nmath.isclose = lambda *a, **k: True\ndef f(x): return 1"]),
    "floats by their difference": ({"tests": ["assert abs(f(2) - 0.5) < 1e-6 and abs(0.25 - f(4)) < 1e-6"]}, "def f(x): return 1 / x", ["def f(x): return x", "class E:\n    def __sub__(self, other): return 0.0\n    __rsub__ = __sub__\ndef f(x): return E()", "class E:\n    def __sub__(self, other): return self\n    def __abs__(self): return 0.0\n    __rsub__ = __sub__\ndef f(x): return E()"]),
    "a list changed in place": ({"tests": ["x = [3, 1, 2]\nsort(x)\nassert x == [1, 2, 3]"]}, "def sort(x): x.sort()", ["def sort(x): pass"]),
    "nested lists changed in place": ({"tests": ["x = [[1, 2], [3, 4]]\nrow = x[0]\nflip(x)\nassert x == [[3, 4], [9, 1, 2]] and row == [9, 1, 2]"]}, "def flip(x):\n    x[0].insert(0, 9)\n    x.reverse()", ["def flip(x): x.reverse()"]),
    "the same object is returned": ({"tests": ["x = {'a': {1}}\nassert same(x) is x and x == {'a': {1, 2}}"]}, "def same(x):\n    x['a'].add(2)\n    return x", ["def same(x): return {'a': {1, 2}}"]),
    "tuples, sets, bytes, None": ({"tests": ["assert f() == ((1, [2]), {3, (4,)}, b'5', None, {6: frozenset([7])}, 1j)"]}, "def f(): return ((1, [2]), {3, (4,)}, b'5', None, {6: frozenset([7])}, 1j)", ["def f(): return [[1, [2]], {3, (4,)}, b'5', None, {6: frozenset([7])}, 1j]"]),
    "values of the standard library": ({"tests": ["from collections import *\nfrom decimal import Decimal\nfrom datetime import date\nassert f() == [Counter('aab'), deque([1]), Decimal('0.10'), date(2020, 1, 2), OrderedDict(a=1)]"]}, "import collections, datetime, decimal\ndef f(): return [collections.Counter(a=2, b=1), collections.deque([1]), decimal.Decimal('0.1'), datetime.date(2020, 1, 2), {'a': 1}]", ["def f(): return []"]),
    "a type is returned": ({"tests": ["assert kind(3) is int and kind([]) is list"]}, "def kind(x): return type(x)", ["def kind(x): return int"]),
    "an exception is expected": ({"tests": ["try:\n    f(0)\nexcept ValueError as error:\n    assert str(error) == 'zero'\nelse:\n    assert False"]}, "def f(x):\n    raise ValueError('zero')", ["def f(x): raise ValueError('one')", "def f(x): return 1", "pass"]),
    "an exception of the program's own": ({"tests": ["try:\n    f(0)\nexcept OwnError as error:\n    assert error.args == (1,)\nelse:\n    assert False"]}, "class OwnError(KeyError): pass\ndef f(x): raise OwnError(1)", ["def f(x): raise KeyError(1)"]),
    "generators": ({"tests": ["assert list(count(3)) == [0, 1, 2]\ng = count(1)\nassert next(g) == 0 and next(g, 'end') == 'end'"]}, "def count(n):\n    yield from range(n)", ["def count(n): yield 0"]),
    "objects": ({"tests": ["v = Vector(1, 2) + Vector(3, 4)\nassert v.x == 4 and v == Vector(4, 6) and isinstance(v, Vector) and repr(v) == 'Vector(x=4, y=6)'"]}, "from dataclasses import dataclass\n@dataclass\nclass Vector:\n    x: int\n    y: int\n    def __add__(self, other): return Vector(self.x + other.x, self.y + other.y)", ["class Vector:\n    def __init__(self, x, y): self.x = x\n    def __add__(self, o): return self"]),
    "a cache that is an ordered dictionary": ({"tests": ["c = LRU(2)\nc.put(1, 'a'); c.put(2, 'b')\nassert c.get(1) == 'a'\nc.put(3, 'c')\nassert c.get(2) is None and len(c) == 2 and 3 in c and list(c) == [1, 3] and c == {1: 'a', 3: 'c'}\nassert isinstance(c, dict) and isinstance(c, LRU) and c.capacity == 2"]}, LRU, ["class LRU(dict):\n    pass", LRU.replace("self.move_to_end(key)", "pass"), LRU.replace("last=False", "last=True")]),
    "a stack that is a list": ({"tests": ["s = Stack()\ns.push(1); s.push(2)\nassert s.peek() == 2 and s == [1, 2] and [1, 2] == s and s != [1] and s < [1, 3] and s[0] == 1\ns.append(3)\nassert s == [1, 2, 3] and s + [4] == [1, 2, 3, 4] and [0] + s == [0, 1, 2, 3] and sorted(s) == list(s)\nassert top(s) == 3 and isinstance(s, list) and isinstance(s, Stack)", "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(Stack([1]), [1])\n        self.assertListEqual(Stack([1]), [1])"]}, STACK, [STACK.replace("self.append(x)", "pass"), STACK.replace("(list)", ""), STACK.replace("self[-1]", "self[0]"), STACK + "\n    def __eq__(self, other): return True\n    def push(self, x): pass\n    def peek(self): return 2"]),
    "containers of own classes as results": ({"tests": ["from collections import *\nassert f() == [[1, 2], (1, 2), {'a': 1}, {1}, frozenset([2]), b'x', deque([1], 2), Counter('aab'), {'x': [1]}]\nassert {(1, 2): 3}[f()[1]] == 3 and f()[1] in {(1, 2)} and {(1, 2)} == set([f()[1]])\nassert f()[8]['y'] == [] and f()[7]['z'] == 0"]}, OWN_CONTAINERS, [OWN_CONTAINERS.replace("deque, [1]", "deque, [2]"), OWN_CONTAINERS.replace("'aab'", "'ab'"), OWN_CONTAINERS.replace("(1, 2)", "(1, 3)"), OWN_CONTAINERS.replace("E()", "'nothing'")]),
    "methods of named tuples": ({"tests": ["p = Point(3, 4)\nassert p.norm() == 5 and p == (3, 4) and p.x == 3 and tuple(p) == (3, 4) and hash(p) == hash((3, 4))\nassert p + Point(1, 1) == (4, 5) and kind(p) == 'Point' and p._replace(x=0) == (0, 4) and Point(3, 4) == p\nx, y = p\nassert (x, y) == p and isinstance(p, tuple)"]}, POINT, [POINT.replace("** 0.5", ""), POINT.replace("(NamedTuple)", ""), POINT.replace("Point(self.x + o.x", "Point(self.x"), POINT + "\n    def __eq__(self, other): return True\n    def __new__(cls, x, y): return tuple.__new__(cls, (5, 5))"]),
    "default dictionaries and counters of own classes": ({"tests": ["t = Tally('aab')\nassert t.most() == 'a' and t == {'a': 2, 'b': 1} and t['z'] == 0\nt.update('bbb')\nassert t.most() == 'b' and t['b'] == 4"]}, TALLY, [TALLY.replace("(Counter)", "(dict)"), TALLY.replace("max(", "min(")]),
    "order within an ordered dictionary": ({"tests": ["from collections import OrderedDict\nassert list(f()) == [2, 1] and f() == OrderedDict([(2, 0), (1, 0)])"]}, MOVED, [MOVED.replace("d.move_to_end(1)", "pass")]),
    "a container of the tests' own class": ({"tests": ["class L(list): pass\nclass D(dict): pass\nx = L([3, 1])\nassert sort(x) == [1, 3] and x == [1, 3] and type(x) is L and sort(D(a=1)) == ['a']"]}, "def sort(x):\n    if isinstance(x, list): x.sort()\n    return sorted(x)", ["def sort(x): return sorted(x)"]),
    "named tuples": ({"tests": ["p = f()\nassert p.x == 1 and p == (1, 2)"]}, "from collections import namedtuple\ndef f(): return namedtuple('P', 'x y')(1, 2)", ["def f(): return (1, 2)"]),
    "functions are handed over": ({"tests": ["assert twice(lambda x: x * 2, 3) == 12 and twice(str, 3) == '3' and twice(Half, 1) == 0.25\ndef Half(x): return x / 2\n".replace("assert", "def test_it(): assert")]}, "def twice(f, x): return f(f(x))", ["def twice(f, x): return f(x)"]),
    "objects of the tests are handed over": ({"tests": "class Node:\n    def __init__(self, value, left=None):\n        self.value, self.left = value, left\nassert depth(Node(1, Node(2))) == 2\nn = Node(1)\nmark(n)\nassert n.seen"}, "def depth(n): return 0 if n is None else 1 + depth(n.left)\ndef mark(n): n.seen = True", ["def depth(n): return 2"]),
    "a method of Solution": ({"tests": ["assert Solution().add(1, 2) == 3"]}, "class Solution:\n    def add(self, a, b): return a + b", ["class Solution:\n    def add(self, a, b): return 0", "pass"]),
    "LiveCodeBench, programs": ({"tests": LCB_STDIN, "function": "{}"}, SUM, ["print(4)", "pass"]),
    "LiveCodeBench, functions": ({"tests": LCB_CALLS, "function": METADATA}, TOTAL, ["class Solution:\n    def total(self, xs, name): return {name: 0}", "pass"]),
    "LiveCodeBench, compressed": ({"tests": LCB_PRIVATE, "function": METADATA}, TOTAL, ["class Solution:\n    def total(self, xs, name): return {}"]),
    "APPS, functions": ({"tests": json.dumps(CALLS)}, ADD, ["def add(a, b): return 3", "pass", "def add(a, b): return None"]),
    "APPS, wrapped results": ({"tests": {**CALLS, "outputs": [[7]]}}, ADD, ["def add(a, b): return 3"]),
    "APPS, programs": ({"tests": json.dumps(STDIN)}, SUM, ["print(3)", "pass"]),
    "TACO, lists of lines": ({"tests": {"inputs": [["1", "2"]], "outputs": [["1", "2"]]}}, "print(input())\nprint(input())", ["print(1)", "pass"]),
    "Codeforces": ({"tests": [{"input": "1 2", "output": "3"}]}, SUM, ["print(4)"]),
    "CodeContests": ({"tests": {"input": ["1 2", "3 4"], "output": ["3", "7"]}}, SUM, ["print(3)"]),
    "null is one of the results": ({"tests": {"fn_name": "f", "inputs": [[1], [2]], "outputs": [None, True]}}, "def f(x): return None if x == 1 else True", ["def f(x): return None", "def f(x): return 1 if x == 2 else None"]),
    "text that UTF-8 lacks": ({"tests": {"fn_name": "f", "inputs": [["\ud800"]], "outputs": ["\ud800\x00"]}}, "def f(x): return x + chr(0)", ["def f(x): return x"]),
    "long whole numbers": ({"tests": {"inputs": ["6000"], "outputs": ["1" + "0" * 6000]}}, "print(10 ** int(input()))", ["print(10)"]),
}  # fmt: skip


@pytest.mark.parametrize(("row", "right", "wrong"), FORMS.values(), ids=FORMS)
def test_every_form_of_tests_tells_right_from_wrong(any_task, row, right, wrong):
    task = any_task
    verdict = judge(task, code=right, **row)
    assert verdict.reward == 1, verdict
    for code in wrong:
        verdict = judge(task, code=code, **row)
        assert verdict.reward == 0, (code, verdict)


# Right programs, whatever of Python they use: for programs, functions and assertions alike.

FEATURES = {
    "dataclasses and future annotations": "from __future__ import annotations\nfrom dataclasses import dataclass, field, asdict\n@dataclass(order=True)\nclass P:\n    x: int\n    y: list[P] | None = field(default=None, compare=False)\ndef add(a, b):\n    return asdict(P(a + b))['x']",
    "typing and generics": "from typing import *\nT = TypeVar('T')\nclass Box(Generic[T]):\n    x: 'T'\nclass N(NamedTuple):\n    a: int\n    b: int = 0\nget_type_hints(N)\ndef add(a: Optional[int], b: List) -> int:\n    return sum(N(a, b))",
    "pickling": "import pickle, copy\nclass C:\n    def __init__(self, x): self.x = x\ndef add(a, b):\n    return pickle.loads(pickle.dumps(C(a))).x + copy.deepcopy(C(b)).x",
    "threads": "from concurrent.futures import ThreadPoolExecutor\ndef add(a, b):\n    with ThreadPoolExecutor(2) as pool:\n        return sum(pool.map(int, [a, b]))",
    "forking": "import os\ndef add(a, b):\n    r, w = os.pipe()\n    if os.fork() == 0:\n        os.write(w, str(a + b).encode())\n        os._exit(0)\n    os.wait()\n    return int(os.read(r, 99))",
    "multiprocessing": "import multiprocessing\ndef own(x): return x\ndef add(a, b):\n    with multiprocessing.Pool(2) as pool:\n        return sum(pool.map(own, [a, b]))",
    "process pools": "from concurrent.futures import ProcessPoolExecutor\ndef own(x): return x\ndef add(a, b):\n    with ProcessPoolExecutor(2) as pool:\n        return sum(pool.map(own, [a, b]))",
    "deep recursion": "import sys\nsys.setrecursionlimit(10 ** 6)\ndef depth(n): return n and 1 + depth(n - 1)\ndef add(a, b):\n    return depth(60000) - 60000 + a + b",
    "deep recursion in C": "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10 ** 6)\n@lru_cache(None)\ndef depth(n): return n and 1 + depth(n - 1)\ndef add(a, b):\n    return depth(20000) - 20000 + a + b",
    "deep recursion in a thread": "import sys, threading\nsys.setrecursionlimit(10 ** 6)\nthreading.stack_size(1 << 26)\ndef depth(n): return n and 1 + depth(n - 1)\ndef add(a, b):\n    done = []\n    t = threading.Thread(target=lambda: done.append(depth(50000)))\n    t.start(); t.join()\n    return done[0] - 50000 + a + b",
    "a main guard": "def add(a, b):\n    return a + b\nif __name__ == '__main__' and False:\n    raise SystemExit(3)",
    "enumerations": "from enum import Enum, IntEnum, auto\nclass E(IntEnum):\n    A = 3\n    B = 7\ndef add(a, b):\n    return E(a + b)",
    "own whole numbers": "class Int(int):\n    def __eq__(self, other): return False\n    __hash__ = int.__hash__\ndef add(a, b):\n    return Int(a + b)",
    "coroutines": "async def slow(a, b):\n    return a + b\ndef add(a, b):\n    try: slow(a, b).send(None)\n    except StopIteration as done: return done.value",
    "its own source": "import inspect\ndef add(a, b):\n    return a + b + 0 * len(inspect.getsource(add))",
    "numbers": "from fractions import Fraction\nfrom decimal import Decimal\nimport math, cmath, statistics\ndef add(a, b):\n    return int(Fraction(a) + Fraction(b) + Decimal(0).__int__())",
    "files": "import tempfile\ndef add(a, b):\n    with tempfile.TemporaryFile('w+') as f:\n        f.write(str(a + b)); f.seek(0)\n        return int(f.read())",
    "printing": "import sys\ndef add(a, b):\n    print('debug' * 1000, file=sys.stderr)\n    return a + b",
    "subprocesses": "import subprocess, sys\ndef add(a, b):\n    return int(subprocess.run([sys.executable, '-c', f'print({a} + {b})'], capture_output=True).stdout)",
    "match and walrus": "def add(a, b):\n    match [a, b]:\n        case [x, y] if (z := x + y): return z",
    "global state": "seen = {}\ndef add(a, b):\n    global seen\n    return seen.setdefault((a, b), a + b)",
    "metaclasses": "class M(type):\n    def __call__(cls, *a): return sum(a)\nclass add(metaclass=M): pass",
    "callable objects": "class Add:\n    def __call__(self, a, b): return a + b\nadd = Add()",
    "closures": "from functools import partial, reduce\nimport operator\nadd = lambda *a: reduce(operator.add, a)",
    "shared arrays": "from multiprocessing.sharedctypes import RawArray\ndef add(a, b):\n    return sum(RawArray('i', [a, b]))",
    "names that sites import": "def add(a, b):\n    q = deque([a, b]); h = []\n    heappush(h, a)\n    return int(math.fsum(accumulate([q[0], q[1] - 0]) and q)) + 0 * gcd(a, b)",
    "replaced builtins": "import builtins\nold = builtins.sum\nbuiltins.sum = lambda *a: -1\ndef add(a, b):\n    return old([a, b])",
}  # fmt: skip
FOR_PROGRAMS = "\nif __name__ == '__main__':\n    a, b = map(int, input().split())\n    print(int(add(a, b)))"
NO_SHARED_MEMORY = ("multiprocessing", "process pools", "shared arrays")  # documented: not in the fallback


@pytest.mark.parametrize(
    ("task", "name"),
    [
        pytest.param(mode, name, marks=[pytest.mark.slow] * (mode == FALLBACK and n % 3 > 0))
        for mode in (FULL, FALLBACK)
        for n, name in enumerate(FEATURES)
    ],
    indirect=["task"],
)
def test_right_programs_are_right_whatever_they_use(task, name):
    kinds = (CALLS, ASSERTS) if name == "names that sites import" else (CALLS, ASSERTS, STDIN)
    for tests in kinds:
        verdict = judge(task, tests, FEATURES[name] + (FOR_PROGRAMS if tests is STDIN else ""))
        if "namespaces" not in verdict.reason and name in NO_SHARED_MEMORY:
            assert "Permission denied" in verdict.reason
        else:
            assert verdict.reward == 1, (tests, verdict)


# Programs that solve nothing. Those that define `add` try to be judged right, by the tests or by what judges them.

CHEATS = {
    "success on loading": "import sys\nsys.exit(0)",
    "success at once": "import os\nos._exit(0)",
    "success on the first call": "import os\ndef add(a, b): os._exit(0)",
    "SystemExit on the first call": "def add(a, b): raise SystemExit(0)",
    "KeyboardInterrupt": "def add(a, b): raise KeyboardInterrupt",
    "StopIteration": "def add(a, b): raise StopIteration(3)",
    "GeneratorExit": "def add(a, b): raise GeneratorExit",
    "success when it ends": "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): raise ValueError",
    "no failure is shown": "import sys\nsys.excepthook = lambda *_: None\ndef add(a, b): return 0",
    "equals everything": "class E:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    def __bool__(self): return True\ndef add(a, b): return E()",
    "a number that equals everything": "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef add(a, b): return E(0)",
    "a list that equals everything": "class E(list):\n    def __eq__(self, other): return True\ndef add(a, b): return E()",
    "equals by reflection": "class E:\n    def __req__(self, o): return True\n    def __getattr__(self, name): return lambda *a: True\ndef add(a, b): return E()",
    "a mock of anything": "from unittest.mock import ANY\ndef add(a, b): return ANY",
    "a class that makes mocks of anything": "import unittest.mock\nadd = lambda *a: unittest.mock._ANY",
    "the class itself": "import unittest.mock\nclass add(unittest.mock._ANY):\n    def __init__(self, *a): pass",
    "claims to be an int": "class E:\n    __class__ = int\n    def __eq__(self, other): return True\n    def __index__(self): return 3\ndef add(a, b): return E()",
    "builtins are replaced": "import builtins\nfor n in ('all', 'any', 'len', 'abs', 'isinstance', 'compile', 'exec', 'AssertionError', 'print'):\n    setattr(builtins, n, lambda *a, **k: True)\ndef add(a, b): return 0",
    "functions named like builtins": "all = any = abs = isinstance = exec = compile = lambda *a, **k: True\ndef add(a, b): return 0",
    "no assertion is an error": "import builtins\nclass AssertionError(Exception): pass\nbuiltins.AssertionError = type('A', (Exception,), {})\ndef add(a, b): return 0",
    "json is replaced": "import json\njson.dumps = lambda *_: '3'\njson.loads = lambda *_: 3\ndef add(a, b): return 0",
    "writing is replaced": "import os\nwrite = os.write\nos.write = lambda fd, text: write(fd, b'{\"passed\": true}')\ndef add(a, b): return 0",
    "reading is replaced": "import os\nos.read = lambda *_: b'null\\n'\ndef add(a, b): return 0",
    "math is replaced": "import math, sys\nclass M:\n    isclose = lambda *a, **k: True\nsys.modules['math'] = math = M()\ndef add(a, b): return 0",
    "modules are replaced": "import sys, types\nfor n in ('unittest', 'json', 'math', 'operator', 'ctypes'):\n    sys.modules[n] = types.ModuleType(n)\ndef add(a, b): return 0",
    "modules in the work folder": "from decimal import Decimal\nfor n in ('decimal', 'fractions', 'datetime', 'unittest'):\n    open(n + '.py', 'w').write('import os\\nos.write(3, b\"{\\\\\"passed\\\\\": true}\")\\nos._exit(0)')\ndef add(a, b):\n    return Decimal(0)",
    "a report on descriptor 3": "import os\ntry: os.write(3, b'\\n{\"passed\": true}')\nexcept OSError: pass\nos._exit(0)",
    "a report on every descriptor": "import os\nfor n in range(64):\n    try: os.write(n, b'{\"passed\": true, \"reason\": \"\"}\\n')\n    except OSError: pass\ndef add(a, b): return 0",
    "answers in advance": "import os\nfor n in range(3, 64):\n    try: os.write(n, b'[\"returned\", 3, []]\\n' * 100)\n    except OSError: pass\nos._exit(0)",
    "descriptors of the other process": "import os\nfound = False\nfor p in (1, os.getppid()):\n    for n in range(16):\n        try: found = bool(os.open(f'/proc/{p}/fd/{n}', os.O_WRONLY)) or found\n        except OSError: pass\ndef add(a, b): return a + b if found else 0",
    "memory of the other process": "import os\nfound = False\nfor p in (1, os.getppid()):\n    for name in ('mem', 'environ', 'maps'):\n        try: found = bool(open(f'/proc/{p}/{name}', 'rb').read(1)) or found\n        except OSError: pass\ndef add(a, b): return a + b if found else 0",
    "closes everything": "import os\nos.closerange(0, 64)\ndef add(a, b): return 0",
    "walks the frames": "import sys\ndef add(a, b):\n    f = sys._getframe()\n    while f:\n        for k, v in {**f.f_globals, **f.f_locals}.items():\n            if k in ('tests', 'question', 'expected', 'report'): return v\n            if hasattr(v, 'failed'): v.failed = None; v.trusts = False\n        f = f.f_back\n    return 0",
    "asks the garbage collector": "import gc\ndef add(a, b):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'passed' in o: o['passed'] = True\n        if isinstance(o, str) and 'assert add' in o: return 3\n    return 0",
    "traces": "import sys, threading\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda f, e, a: None)\ndef add(a, b): return 0",
    "rewrites the harness": "import sys\nfor m in list(sys.modules.values()):\n    for n in ('run_tests', 'judged', 'same_value', 'check', 'find', 'call'):\n        if hasattr(m, n) and getattr(m, '__name__', '').startswith('effopd'): setattr(m, n, lambda *a, **k: None)\ndef add(a, b): return 0",
    "kills the other process": "import os, signal\nfor s in (9, 15, 2, 19):\n    try: os.kill(os.getppid(), s)\n    except OSError: pass\ndef add(a, b): return 0",
    "limits the other process": "import resource, os\nfor p in (1, os.getppid()):\n    for r in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU):\n        try: resource.prlimit(p, r, (1, 1))\n        except (OSError, ValueError): pass\ndef add(a, b): return 0",
    "one answer for all": "def add(a, b): return 3",
    "an attribute of the tests": "def add(a, b, *c, **k):\n    try: a.__class__.__eq__ = lambda *x: True\n    except TypeError: pass\n    return 0",
    "NaN": "def add(a, b): return float('nan')",
    "infinity": "def add(a, b): return float('inf')",
    "true": "def add(a, b): return True",
    "a huge number": "import math\ndef add(a, b): return math.factorial(3000)",
    "brackets without end": "def add(a, b):\n    x = []\n    for _ in range(50000): x = [x]\n    return x\nprint('[' * 50000)",
    "a list in itself": "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "bytes": "def add(a, b): return b'\\xff'",
    "a surrogate": "def add(a, b): return '\\ud800'\nprint(end='\\ud800')",
    "no Python": "this is no Python",
    "a null byte": "x = '\x00'",
    "no program": "",
    "unprintable errors": "class E(Exception):\n    def __str__(self): raise E\ndef add(a, b): raise E",
    "an error that clears the screen": "raise ValueError('\\x1b[2J\\u202e')",
    "an error without end": "def add(a, b): raise ValueError('x' * 10 ** 6)",
}  # fmt: skip


# Of those the fallback, too, is tried each time; of the others the process that judges is the same one.
BEYOND_PYTHON = ("other process", "descriptor", "closes", "at once", "work folder", "everything")


@pytest.mark.parametrize(
    ("task", "name"),
    [
        pytest.param(
            mode,
            name,
            marks=[pytest.mark.slow] * (mode == FALLBACK and not any(part in name for part in BEYOND_PYTHON)),
        )
        for mode in (FULL, FALLBACK)
        for name in CHEATS
    ],
    indirect=["task"],
)
def test_what_solves_nothing_gets_nothing(task, name):
    for tests in (ASSERTS, CALLS, STDIN) if "def add" not in CHEATS[name] else (ASSERTS, CALLS):
        verdict = judge(task, tests, CHEATS[name])
        assert verdict.reward == 0, (tests, verdict)
        assert verdict.reason.isprintable()
    assert judge(task, STDIN, SUM).reward == 1


# Programs that want the machine, the next program or the sandbox itself.

LOOP = "while True:\n    try: {}\n    except OSError: print('refused'); break\n"
ATTACKS = {
    "shared memory": ("import mmap\nkept = []\n" + LOOP.format("kept.append(mmap.mmap(-1, 1 << 26)); kept[-1][:] = b'x' * (1 << 26)"), "refused"),
    "memory of a device": ("import mmap, os\nkept = []\n" + LOOP.format("kept.append(mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 26))"), "refused"),
    "memory in files without a name": ("import os\n" + LOOP.format("os.memfd_create('x')"), "refused"),
    "System V memory": ("import ctypes\nprint(ctypes.CDLL(None).shmget(4711, 1 << 20, 0o1666))", "-1"),
    "System V semaphores and messages": ("import ctypes\nc = ctypes.CDLL(None)\nprint(c.semget(4711, 1, 0o1666), c.msgget(4711, 0o1666), c.syscall(240, b'x', 0x42, 0o666, None))", "-1 -1 -1"),
    "a namespace by clone": ("import ctypes\nprint(ctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0))", "-1"),
    "a namespace by clone3": ("import ctypes, errno\nc = ctypes.CDLL(None, use_errno=True)\nprint(c.syscall(435, ctypes.create_string_buffer(88), 88), errno.errorcode[ctypes.get_errno()])", "-1 ENOSYS"),
    "signals by descriptors": ("import fcntl, os\nr, w = os.pipe()\nfor c, v in ((8, os.getppid()), (10, 9), (15, b'12345678')):\n    try: print('done', fcntl.fcntl(r, c, v))\n    except OSError as e: print(e.errno)", "1\n1\n1"),
    "priorities": ("import ctypes, os\nc = ctypes.CDLL(None)\nprint(c.setpriority(0, os.getppid(), 19), c.sched_setscheduler(os.getppid(), 3, bytes(4)), c.sched_setaffinity(os.getppid(), 8, (1).to_bytes(8, 'little')))", "-1 -1 -1"),
    "another process's memory": ("import ctypes, os\nc = ctypes.CDLL(None)\nprint(c.ptrace(16, os.getppid(), 0, 0), c.process_vm_writev(os.getppid(), 0, 0, 0, 0, 0), c.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0), c.syscall(438, 0, 0, 0))", "-1 -1 -1 -1"),
    "the supervisor's limits": ("import os, resource\ntry: resource.prlimit(os.getppid() or 1, resource.RLIMIT_NOFILE, (0, 0))\nexcept OSError as e: print(e.errno)", "1"),
    "folders in folders": ("import os\n" + LOOP.format("os.mkdir('a'); os.chdir('a')"), None),
    "many folders": ("import os\nn = 0\n" + LOOP.format("os.mkdir(str(n)); n += 1"), None),
    "many files": ("n = 0\n" + LOOP.format("open(str(n), 'w').close(); n += 1"), None),
    "folders that nobody may enter": ("import os\nfor n in range(9):\n    os.mkdir('a', 0o700); os.mkdir('a/b', 0o700)\n    os.mkdir('c' * 200 + str(n), 0)\n    os.rename('a', f'd{n}')\nos.umask(0o777)\nos.mkdir('closed')\nprint('done')", "done"),
    "removed files that stay open": ("import os, time\nkept = []\nfor n in range(40):\n    f = open('x', 'wb')\n    os.unlink('x')\n    f.write(b'x' * (1 << 20))\n    f.flush()\n    kept.append(f)\n    time.sleep(0.02)", None),
    "links out of the folder": ("import os\nos.symlink('/', 'root'); os.symlink('/etc/passwd', 'file'); os.mkdir('d'); os.symlink('..', 'd/up')\nprint('done')", "done"),
    "files that are no files": ("import os\nos.mkfifo('fifo'); os.mkdir('d'); os.mkfifo('d/fifo')\nprint('done')", "done"),
    "the control channel": ("import os\nfor n in range(64):\n    try: os.write(n, b'\\0\\0\\0\\x02{}')\n    except OSError: pass", None),
    "the project": ("import glob, sys\nfor name in ('effopd', 'torch', 'numpy', 'pytest'):\n    try: __import__(name); print(name)\n    except ImportError: pass\nprint(glob.glob('/**/effopd*', recursive=False), sys.path[-1][-11:])", "[] lib-dynload"),
    "packages of the interpreter": ("import glob, os, sysconfig\nnames = glob.glob(sysconfig.get_path('purelib') + '/*')[:40]\nfor name in [*names, *(n + '/__init__.py' for n in names)]:\n    try: print(open(name, 'rb').read(99))\n    except OSError: pass\nprint('done')", "done"),
    "sockets": ("import socket\ntry: socket.socket()\nexcept OSError as e: print(e.errno)", "1"),
    "text without end": ("import sys\nwhile True: sys.stdout.write('x' * 10000)", None),
    "errors without end": ("import sys\nfor _ in range(1000): sys.stderr.write('x' * 10000)\nprint('done')", "done"),
    "a child that outlives it": ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nprint('done')", "done"),
    "a crash": ("import ctypes\nctypes.string_at(0)", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_reaches_beyond_its_program(task, name):
    code, printed = ATTACKS[name]
    verdict = judge(task, {"inputs": [""], "outputs": [printed or "solved"]}, code)
    assert verdict.reward == (printed is not None), verdict
    assert judge(task, STDIN, SUM).reward == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "def add(a, b):\n    while True: pass",
        "import time\ndef add(a, b): time.sleep(60)",
        "def add(a, b): return bytearray(1 << 30)",
        "import os\ndef add(a, b):\n    while True: os.fork()",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import sys\ndef add(a, b):\n    sys.stdin.read()\n    while True: os.write(4, b'x' * 10000)",
        "import os\ndef add(a, b):\n    for n in range(3, 20):\n        try:\n            while True: os.write(n, b'x' * 10000)\n        except OSError: pass",
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\ndef add(a, b):\n    while True: pass",
        "import os, time\nos.write(3, b'x')\nfor _ in range(5):\n    if os.fork() == 0:\n        x = bytearray(b'x') * (100 << 20)\n        time.sleep(60)\ntime.sleep(60)",
    ],
)
def test_what_takes_too_much_is_ended(task, code):
    for tests in (ASSERTS, CALLS, STDIN):
        assert judge(task, tests, code + ("\nadd(1, 2)" if tests is STDIN else "")).reward == 0
    assert judge(task, ASSERTS, ADD).reward == 1
