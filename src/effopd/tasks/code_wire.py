"""Two Python processes that use each other's objects: the tests of a problem, and the program that is tested.

Plain data (numbers, text, containers, dates, ...) crosses as JSON and is built anew on the other side, so that nothing
of the program runs where the tests compare it. Anything else crosses as a handle: a `Proxy`, which asks the other side
for each attribute, call and operation. So do containers of classes of the program's own, such as a list with further
methods; with plain data they are compared as the standard containers that they extend. Imports the standard library
alone.
"""

from __future__ import annotations

import collections
import importlib
import json
import operator
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

PLAIN_TYPES = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set, str, tuple)
# By module and name: how a value is written as arguments of its type.
STANDARD: dict[tuple[str, str], Callable[[Any], list[Any]]] = {
    ("builtins", "complex"): lambda v: [v.real, v.imag],
    ("builtins", "range"): lambda v: [v.start, v.stop, v.step],
    ("builtins", "slice"): lambda v: [v.start, v.stop, v.step],
    ("decimal", "Decimal"): lambda v: [str(v)],
    ("fractions", "Fraction"): lambda v: [v.numerator, v.denominator],
    ("datetime", "date"): lambda v: [v.year, v.month, v.day],
    ("datetime", "time"): lambda v: [v.hour, v.minute, v.second, v.microsecond],
    ("datetime", "datetime"): lambda v: [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond],
    ("datetime", "timedelta"): lambda v: [v.days, v.seconds, v.microseconds],
}
CONTAINERS = {
    kind.__name__: kind
    for kind in (list, tuple, dict, set, frozenset, bytes, bytearray,
                 collections.deque, collections.OrderedDict, collections.defaultdict, collections.Counter)
}  # fmt: skip
UNCHANGING = (tuple, frozenset, bytes)
DICTS = ("dict", "Counter", "OrderedDict", "defaultdict")
READABLE = {"__name__", "__qualname__", "__doc__", "__dict__", "__annotations__", "__module__", "__wrapped__"}
ENDINGS = (SystemExit, KeyboardInterrupt, GeneratorExit)  # never passed on: the program is at its end
OPERATORS: dict[str, Callable[..., Any]] = {
    "__len__": len, "__iter__": iter, "__next__": next, "__str__": str, "__repr__": repr, "__bool__": bool,
    "__hash__": hash, "__float__": float, "__int__": int, "__index__": operator.index, "__round__": round,
    "__reversed__": reversed, "__format__": format, "__contains__": operator.contains, "__getitem__": operator.getitem,
    "__setitem__": operator.setitem, "__delitem__": operator.delitem, "__abs__": abs, "__neg__": operator.neg,
    "__pos__": operator.pos, "__invert__": operator.invert, "__divmod__": divmod,
    "__eq__": operator.eq, "__ne__": operator.ne, "__lt__": operator.lt, "__le__": operator.le, "__gt__": operator.gt,
    "__ge__": operator.ge, "__instancecheck__": lambda kind, value: isinstance(value, kind),
    "__enter__": lambda v: type(v).__enter__(v), "__exit__": lambda v, *error: type(v).__exit__(v, None, None, None),
}  # fmt: skip
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
for _name in _BINARY:
    _operator = getattr(operator, f"__{_name}__")
    OPERATORS[f"__{_name}__"] = _operator
    OPERATORS[f"__r{_name}__"] = lambda one, other, _operator=_operator: _operator(other, one)
COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__instancecheck__")
DIFFERENCES = ("__sub__", "__rsub__")


class GoneError(BaseException):
    """The other side has ended, or says what no side says. No test can catch it by accident."""


class Known(list[Any]):
    """The containers that both sides know by number in one exchange, in the order in which they were met."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}

    def append(self, container: Any) -> None:
        self.numbers[id(container)] = len(self)
        super().append(container)


class Proxy:
    """An object of the other side.

    Of a container, `_extends` is the standard type that its class extends, and `_content` what it holds, as a value of
    that type, if that never changes.
    """

    __slots__ = ("_content", "_extends", "_number", "_peer")

    def __init__(self, peer: Peer, number: int, extends: type | None = None, content: Any = None) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_extends", extends)
        object.__setattr__(self, "_content", content)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what isinstance() goes by
        return self._extends or Proxy

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._peer.ask("call", self, given, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in READABLE:
            raise AttributeError(name)
        return self._peer.ask("get", self, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, (name, value))

    def __delattr__(self, name: str) -> None:
        self._peer.ask("delete", self, (name,))


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Proxy, *given: Any) -> Any:
        if name == "__exit__":
            given = ()
        if name in COMPARISONS and type(given[0]) is not Proxy:
            # what the tests expect stays with them: an object that is no plain data equals none, however it compares
            if self._extends is None or name == "__instancecheck__":
                return False if name == "__instancecheck__" else NotImplemented
            content = self._content if self._content is not None else self._peer.ask("content", self)
            return OPERATORS[name](content, *given)
        if name == "__hash__" and self._content is not None:
            return hash(self._content)
        if name in DIFFERENCES and not self._peer.trusts and isinstance(given[0], (int, float, complex)):
            return NotImplemented  # `abs(found - 0.5) < 1e-6` is a comparison too, and would tell what is expected
        return self._peer.ask(name, self, given)

    return method


for _name in OPERATORS:
    setattr(Proxy, _name, _forwarded(_name))


class Peer:
    """One side. `trusts` says whether the other may do with this side's objects whatever it likes.

    If it does not, the other side may call and iterate over what it was handed, and use public attributes of instances
    of classes that `__main__` defines.
    """

    def __init__(self, reading: int, writing: int, trusts: bool) -> None:
        self.reading, self.writing, self.trusts = reading, writing, trusts
        self.held: list[Any] = []  # what the other side has handles of
        self.numbers: dict[int, int] = {}  # their numbers by identity
        self.proxies: dict[int, Proxy] = {}
        self.errors: dict[int, Any] = {}
        self.gone = False  # whether the other side has ended, whatever a test made of that
        self.failed: AssertionError | None = None  # an assertion that failed while the other side had called
        self.lock = threading.RLock()
        self.waiting = b""

    # Messages

    def loss(self) -> GoneError:
        self.gone = True
        return GoneError()

    def send(self, message: Any) -> None:
        rest = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while rest:
                rest = rest[os.write(self.writing, rest) :]
        except OSError:
            raise self.loss() from None

    def receive(self) -> Any:
        parts = [self.waiting]
        while b"\n" not in parts[-1]:
            part = os.read(self.reading, 2**16)
            if not part:
                raise self.loss()
            parts.append(part)
        line, _, self.waiting = b"".join(parts).partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise self.loss() from None

    def ask(self, what: str, target: Any, given: Sequence[Any] = (), named: dict[str, Any] | None = None) -> Any:
        """Have the other side do something with an object of its own; what it returns, or raises."""
        with self.lock:
            known = Known()
            question = [self.encode(part, known) for part in (target, tuple(given), named or {})]
            self.send(["ask", what, *question])
            while True:
                kind, *content = self.receive()
                if kind == "ask":
                    self.answer(*content)
                    continue
                if kind == "raised":
                    raise self.error(content[0], Known(), stops=what == "__next__")
                value = self.decode(content[0], known)
                self.restore(content[1], known)
                return value

    def answer(self, what: str, target: Any, given: Any, named: Any) -> None:
        """Do what the other side asks for."""
        known = Known()
        try:
            target, given, named = (self.decode(part, known) for part in (target, given, named))
            handed = len(known)
            value = ["returned", self.encode(self.done(what, target, given, named), known)]
            changed = [self.encode_content(thing, known) for thing in known[:handed]]
        except ENDINGS:
            raise
        except BaseException as error:
            if isinstance(error, GoneError):
                raise
            if isinstance(error, AssertionError):
                self.failed = self.failed or error
            known, changed = Known(), []
            value = ["raised", self.encode_error(error, known)]
        self.send([*value, changed])

    def done(self, what: str, target: Any, given: Any, named: Any) -> Any:
        if what == "call":
            return target(*given, **named)
        if what == "content" and self.trusts:
            return _plain(target)
        if what in OPERATORS:
            return OPERATORS[what](target, *given)
        if what not in ("get", "set", "delete"):
            raise self.loss()
        if not self.trusts and (given[0].startswith("_") or type(target).__module__ != "__main__"):
            raise AttributeError(given[0])
        access: dict[str, Callable[..., Any]] = {"get": getattr, "set": setattr, "delete": delattr}
        return access[what](target, *given)

    # Values

    def encode(self, value: Any, known: Known) -> Any:
        """A value as JSON. `known` are the containers that both sides know by number in this exchange."""
        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind is Proxy:
            return ["yours", value._number]
        if (number := known.numbers.get(id(value))) is not None:
            return ["known", number]
        content = self.encode_content(value, known, register=True)
        return content if content is not None else self.handle(value, known)

    def encode_content(self, value: Any, known: Known, register: bool = False) -> Any:
        """A container or other plain data; None if it is no plain data. With `register`, a container is made known."""
        kind = type(value)
        name = (kind.__module__, kind.__name__)
        if extends := _standard(kind):
            if kind is not extends and self.trusts:
                return None
            if register and extends not in UNCHANGING:
                known.append(value)
            fields = getattr(kind, "_fields", None)
            return self.encode_container(_plain(value), known, kind.__name__, fields)
        if isinstance(value, int) and kind is not bool:  # an IntEnum, for one
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, str):
            return str.__str__(value)
        if name in STANDARD and getattr(value, "tzinfo", None) is None:
            return ["standard", *name, *[self.encode(part, known) for part in STANDARD[name](value)]]
        if isinstance(value, type) and kind.__module__ == value.__module__ == "builtins":
            return ["builtin", value.__name__] if not self.trusts or _is_plain_type(value) else None
        if name == ("builtins", "builtin_function_or_method") and not self.trusts:
            return ["builtin", value.__name__] if getattr(value.__self__, "__name__", "") == "builtins" else None
        return None

    def encode_container(self, value: Any, known: Known, name: str, fields: Any) -> list[Any]:
        """A value of one of CONTAINERS; a tuple with `fields` is a named tuple of the class `name`."""
        kind = type(value)
        if kind in (bytes, bytearray):
            return [kind.__name__, bytes(value).hex()]
        if isinstance(value, dict):
            factory = self.encode(value.default_factory, known) if isinstance(value, collections.defaultdict) else None
            return [kind.__name__, factory, *[[self.encode(k, known), self.encode(v, known)] for k, v in value.items()]]
        items = [self.encode(item, known) for item in value]
        if isinstance(fields, tuple) and len(fields) == len(items):
            return ["named", name, list(fields), *items]
        return [kind.__name__, *([value.maxlen] if isinstance(value, collections.deque) else []), *items]

    def handle(self, value: Any, known: Known) -> list[Any]:
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.held)
            self.held.append(value)
        if extends := _standard(type(value)):
            content = _plain(value) if extends in UNCHANGING else None
            sent = content is not None and _is_hashable(content)
            return ["own", number, extends.__name__, *([self.encode(content, known)] if sent else [])]
        kinds = value.__mro__ if isinstance(value, type) and issubclass(value, BaseException) else ()
        return ["mine", number, *([[value.__name__, _builtin_bases(kinds)]] if kinds else [])]

    def decode(self, value: Any, known: Known) -> Any:
        """The value that `encode` wrote. Raises GoneError if it is none."""
        try:
            return self._decoded(value, known)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
            raise self.loss() from None

    def _decoded(self, value: Any, known: Known) -> Any:
        if not isinstance(value, list):
            return value
        name, *rest = value
        if name == "known":
            return known[rest[0]]
        if name == "yours":
            return self.held[rest[0]]
        if name == "mine":
            return self.error_class(rest[0], *rest[1]) if len(rest) > 1 else self.proxy(rest[0])
        if name == "own":
            return self.proxy(rest[0], CONTAINERS[rest[1]], self._decoded(rest[2], known) if rest[2:] else None)
        if name in ("list", "set", "deque", "bytearray") or name in DICTS:
            return self.fill(self.empty(name, rest, known), name, rest, known)
        if name == "bytes":
            return bytes.fromhex(rest[0])
        if name == "builtin":
            kind = getattr(importlib.import_module("builtins"), rest[0])
            if not self.trusts and not _is_plain_type(kind):
                raise ValueError(rest[0])
            return kind
        if name == "standard" and (rest[0], rest[1]) in STANDARD:
            parts = [self._decoded(part, known) for part in rest[2:]]
            return getattr(importlib.import_module(rest[0]), rest[1])(*parts)
        if name == "named":
            named: Any = importlib.import_module("collections").namedtuple(rest[0], rest[1])
            return named(*[self._decoded(item, known) for item in rest[2:]])
        return {"tuple": tuple, "frozenset": frozenset}[name]([self._decoded(item, known) for item in rest])

    def empty(self, name: str, rest: list[Any], known: Known) -> Any:
        """An empty container of a kind, made known before what it holds is read: it may hold itself."""
        kind: Any = CONTAINERS[name]
        if name == "deque":
            container = kind(maxlen=rest[0])
        else:
            container = kind(self._decoded(rest[0], known)) if name == "defaultdict" else kind()
        known.append(container)
        return container

    def fill(self, container: Any, name: str, rest: list[Any], known: Known) -> Any:
        if name == "bytearray":
            container[:] = bytes.fromhex(rest[0])
        elif name == "list":
            container[:] = [self._decoded(item, known) for item in rest]
        elif name == "set":
            container.update(self._decoded(item, known) for item in rest)
        elif name == "deque":
            container.extend(self._decoded(item, known) for item in rest[1:])
        else:
            for key, item in rest[1:]:
                container[self._decoded(key, known)] = self._decoded(item, known)
        return container

    def restore(self, changed: list[Any], known: Known) -> None:
        """Give the containers that were handed over the contents that the other side left in them."""
        try:
            for container, (name, *rest) in list(zip(known, changed, strict=False)):
                if name not in ("list", "bytearray"):
                    items = self.fill(self.empty(name, rest, Known()), name, rest, known)
                    container.clear()
                    container.update(items) if name != "deque" else container.extend(items)
                else:
                    self.fill(container, name, rest, known)
        except (TypeError, ValueError, LookupError, AttributeError):
            raise self.loss() from None

    def proxy(self, number: int, extends: type | None = None, content: Any = None) -> Proxy:
        if type(number) is not int:
            raise self.loss()
        return self.proxies.setdefault(number, Proxy(self, number, extends, content))

    # Exceptions

    def encode_error(self, error: BaseException, known: Known) -> list[Any]:
        kind = type(error)
        given = [self.encode(part, known) for part in error.args]
        if kind.__module__ == "builtins":
            return [None, kind.__name__, [kind.__name__], given]
        return [self.handle(kind, known)[1], kind.__name__, _builtin_bases(kind.__mro__), given]

    def error(self, value: Any, known: Known, stops: bool) -> BaseException:
        """The exception that the other side raised. One that ends loops is another if it does not come from next()."""
        try:
            number, name, bases, given = value
            kind = self.error_class(number, name, bases)
            parts = tuple(self.decode(part, known) for part in given)
        except (TypeError, ValueError):
            raise self.loss() from None
        try:
            error: BaseException = kind(*parts)
        except Exception:  # made in another way
            error = kind.__new__(kind)
            error.args = parts
        if isinstance(error, (StopIteration, StopAsyncIteration)) and not stops:
            return RuntimeError(f"{name} was raised")
        return error

    def error_class(self, number: int | None, name: str, bases: list[str]) -> Any:
        """A class of exceptions of the other side: the builtin one, or one of that name with the same builtin bases."""
        builtins = importlib.import_module("builtins")
        kinds: list[Any] = [getattr(builtins, base, None) for base in bases]
        if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
            raise self.loss()  # an exception that is to end this process
        if number is None:
            return kinds[0]
        if number not in self.errors:
            self.errors[number] = type(str(name), (kinds[0],), {})
        return self.errors[number]


def _standard(kind: type) -> Any:
    """The standard type of containers that a class is or extends; None if it is none of containers."""
    return next((base for base in kind.__mro__ if CONTAINERS.get(base.__name__) is base), None)


def _plain(value: Any) -> Any:
    """What a container holds, as a value of the standard type that its class extends, whatever the class overrides."""
    kind = _standard(type(value))
    if kind is type(value):
        return value
    if issubclass(kind, dict):
        if kind is collections.defaultdict:
            return kind(value.default_factory, dict.items(value))
        return kind(dict(kind.items(value)))  # a Counter counts what is no dictionary
    if kind in (bytes, bytearray):
        return kind(memoryview(value))
    items = kind.__iter__(value)
    return kind(items, value.maxlen) if kind is collections.deque else kind(items)


def _is_hashable(value: Any) -> bool:
    """Whether a value has a hash, and so does not change."""
    try:
        hash(value)
    except Exception:
        return False
    return True


def _is_plain_type(kind: Any) -> bool:
    """Whether the other side may name a builtin: a type of plain data, or an exception."""
    return isinstance(kind, type) and (kind in PLAIN_TYPES or issubclass(kind, Exception))


def _builtin_bases(kinds: Sequence[type]) -> list[str]:
    """The most special builtin exception among base classes."""
    return next(([kind.__name__] for kind in kinds if kind.__module__ == "builtins"), ["Exception"])
