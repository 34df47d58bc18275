"""The process that runs reasoning-gym: it makes problems and scores answers, a JSON object a line in, one a line out.

Scorers hand answers to `eval` and to SymPy's parser, which runs them. Here both read literals and formulas alone, and
while an answer is scored nothing can be written, started or connected to.
"""

from __future__ import annotations

import ast
import json
import math
import os
import random
import re
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

MEMORY_BYTES = 4 * 2**30
LONGEST_SECONDS = 900  # for a question; ends the process where the one that asked is gone
CHUNK = 256  # problems that are made by one seed
# By data set without an answer of its own: where its metadata has one.
EXAMPLES = ("example_answer", "example_correct_answer", "possible_answer")
KIND, VALUE = "!", "of"  # the keys of what JSON does not know
NO_FORMULA = re.compile(r"""__|["'\\#@:;=\[\]{}]|\.\s*[^\W\d]|\blambda\b""")
FORMULA_NAMES = ("sqrt", "cbrt", "root", "pi", "E", "I", "oo", "Integer", "Float", "Rational", "Symbol", "Function")
READS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk"}  # imports look into folders
REFUSED = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "signal.", "fcntl.", "mmap.", "tempfile.")


def encoded(value: Any) -> Any:
    """A value as JSON that `decoded` makes the same value again, types included. Raises TypeError for other types."""
    if isinstance(value, list):
        return [encoded(one) for one in value]
    if isinstance(value, dict):
        if KIND not in value and all(type(key) is str for key in value):
            return {key: encoded(one) for key, one in value.items()}
        return {KIND: "dict", VALUE: [[encoded(key), encoded(one)] for key, one in value.items()]}
    if isinstance(value, tuple):
        return {KIND: "tuple", VALUE: [encoded(one) for one in value]}
    if isinstance(value, set | frozenset):
        return {KIND: type(value).__name__, VALUE: sorted(map(encoded, value), key=json.dumps)}
    if isinstance(value, Fraction):
        return {KIND: "fraction", VALUE: [value.numerator, value.denominator]}
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"metadata of the type {type(value).__name__}")


def decoded(value: Any) -> Any:
    """The value that `encoded` was given."""
    if isinstance(value, list):
        return [decoded(one) for one in value]
    if not isinstance(value, dict):
        return value
    if KIND not in value:
        return {key: decoded(one) for key, one in value.items()}
    makes: dict[str, Callable[[list[Any]], Any]] = {
        "dict": dict, "tuple": tuple, "set": set, "frozenset": frozenset, "fraction": lambda pair: Fraction(*pair)
    }  # fmt: skip
    return makes[value[KIND]](decoded(value[VALUE]))


@lru_cache(maxsize=32)
def _dataset(name: str, parameters: str, seed: int, size: int) -> Any:
    import reasoning_gym

    _seed(seed, "data set")
    return reasoning_gym.create_dataset(name, **json.loads(parameters), seed=seed, size=size)


def _seed(seed: int, place: int | str) -> None:
    """Some data sets draw from the global generators, too."""
    random.seed(f"{seed} {place}")
    np.random.seed(random.getrandbits(32))


def make(question: dict[str, Any]) -> dict[str, Any]:
    """Problems `start` to `stop` of a data set's chunk: questions, entries to score by, reference, difficulty."""
    found = []
    try:
        dataset = _dataset(question["name"], json.dumps(question["parameters"]), question["seed"], CHUNK)
        for place in range(question["start"], question["stop"]):
            _seed(question["seed"], place)
            entry = dataset[place]
            metadata = entry["metadata"]
            found.append(
                {
                    "question": entry["question"],
                    "entry": encoded({"answer": entry["answer"], "metadata": metadata}),
                    "reference": _reference(entry["answer"], metadata),
                    "difficulty": _difficulty(metadata.get("difficulty")),
                }
            )
    except Exception as error:  # as data sets like
        return {"error": f"{type(error).__name__}: {error}"}
    return {"problems": found}


def _reference(answer: Any, metadata: dict[str, Any]) -> str | None:
    """A right answer; None if the data set has none."""
    found = answer if answer is not None else next((metadata[key] for key in EXAMPLES if key in metadata), None)
    return found if found is None or isinstance(found, str) else json.dumps(found)


def _difficulty(found: Any) -> float | None:
    """A number that is called difficulty: of the problem, or of the parameters that it was made by."""
    if isinstance(found, dict):
        found = found.get("difficulty")
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def score(question: dict[str, Any]) -> dict[str, Any]:
    """What the data set's own scorer gives an answer; why, if it gives nothing."""
    reference = json.loads(question["reference"])
    entry = {"question": question["question"], **decoded(reference["entry"])}
    dataset = _dataset(reference["dataset"], json.dumps(reference["parameters"]), 0, 1)
    _seed(0, "score")
    _own_texts.append(set(_texts(entry)))
    try:
        found = float(dataset.score_answer(question["answer"], entry))
    except Exception as error:  # as scorers like
        return {"score": 0.0, "reason": f"the scorer cannot read the answer ({type(error).__name__})"}
    finally:
        _own_texts.clear()
    return {"score": min(max(found, 0.0), 1.0) if math.isfinite(found) else 0.0, "reason": ""}


_own_texts: list[set[str]] = []  # while an answer is scored, the texts of its problem


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple | set | frozenset):
        for one in [*value, *(value.values() if isinstance(value, dict) else ())]:
            yield from _texts(one)


def _refuse(event: str, details: tuple[Any, ...]) -> None:
    """An audit hook. It stands behind `_tame`, for what a later version of the package may run."""
    if not _own_texts:
        return
    writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or (event.startswith(REFUSED) and event not in READS):
        raise PermissionError(f"an answer asked for {event}")


def _tame() -> None:
    """Give the modules of reasoning-gym an `eval` and a SymPy parser that run no part of an answer."""
    import sympy
    from sympy.parsing import sympy_parser

    names = {name: value for name, value in vars(sympy).items() if _is_function(value) or name in FORMULA_NAMES}
    parse = sympy_parser.parse_expr

    def parse_formula(text: str, local_dict: dict[str, Any] | None = None, **options: Any) -> Any:
        if not _own_texts:
            return parse(text, local_dict, **options)
        if NO_FORMULA.search(text):
            raise ValueError("this is no formula")
        return parse(text, local_dict, **{**options, "global_dict": {**names, "__builtins__": {}}})

    def literal(text: str, *scopes: Any) -> Any:
        if _own_texts and text not in _own_texts[0]:
            return ast.literal_eval(text)
        return eval(text, *(scopes or (sys._getframe(1).f_globals,)))

    sympy.parse_expr = sympy_parser.parse_expr = parse_formula
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "reasoning_gym":
            if getattr(module, "parse_expr", None) is parse:
                vars(module)["parse_expr"] = parse_formula
            vars(module).setdefault("eval", literal)


def _is_function(value: Any) -> bool:
    import sympy

    return isinstance(value, type) and issubclass(value, sympy.Function)


def main() -> None:
    """Answer the questions that come on standard input, one JSON line each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    questions, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)  # the package prints, and an answer may ask for input
    os.dup2(nothing, 1)
    sys.dont_write_bytecode = True
    import reasoning_gym  # noqa: F401  # registers all data sets

    _tame()
    sys.addaudithook(_refuse)
    with tempfile.TemporaryDirectory(prefix="effopd-gym-") as folder:
        os.chdir(folder)  # programs that some data sets run to make their problems write files where they are
        print(file=replies, flush=True)
        for line in questions:
            question = json.loads(line)
            signal.alarm(LONGEST_SECONDS)
            print(json.dumps(make(question) if "start" in question else score(question)), file=replies, flush=True)
            signal.alarm(0)
        os.chdir("/")


if __name__ == "__main__":
    main()
