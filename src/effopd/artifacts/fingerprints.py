"""Digests that decide what is still valid: canonical JSON, file contents, and the code of a stage."""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from effopd.common.errors import ConfigError
from effopd.common.registry import OWN, module_file

# Packages that cannot change a result, and the modules of them that can.
NOT_RESULTS = ("effopd.artifacts", "effopd.cli", "effopd.common", "effopd.config", "effopd.results", "effopd.workflow")
RESULTS = ("effopd.common.randomness", "effopd.workflow.estimates")


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, no NaN.

    Raises ValueError for NaN or infinity, TypeError for values that JSON does not know.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Fingerprint of a JSON value: the first 32 hex digits of the sha256 of its canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """The sha256 of a file's contents, as hex digits."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@cache
def code_digest(module: str) -> str:
    """Digest of a module and of every module of effopd, and of its own package, that it imports, directly or not.

    Comments, docstrings and formatting do not count, so that explaining code does not retrain a model. Modules that
    cannot change a result (`NOT_RESULTS`) are left out. Raises ConfigError if a file is not valid Python.
    """
    return digest({name: _tree_digest(name) for name in sorted(_closure(module))})


@cache
def _closure(module: str) -> frozenset[str]:
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name not in found and _counts(name) and module_file(name) is not None:
            found.add(name)
            pending += _imports(name)
    return frozenset(found)


def _counts(module: str) -> bool:
    """Whether a module can change a result."""
    return _within(module, RESULTS) or not _within(module, NOT_RESULTS)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _source(module: str) -> bytes:
    path = module_file(module)
    assert path is not None, module
    return path.read_bytes()


def _is_compiled(module: str) -> bool:
    path = module_file(module)
    return path is not None and path.suffix != ".py"


def _code(module: str) -> tuple[tuple[tuple[str, int, str], ...], str]:
    """Of a module's file what `read_code` has; a compiled one is its bytes. Raises ConfigError if it is not Python."""
    if _is_compiled(module):
        return (), hashlib.sha256(_source(module)).hexdigest()
    try:
        return read_code(_source(module))
    except SyntaxError as error:
        place = f"{module_file(module)}, line {error.lineno}"
        raise ConfigError(f"{place}: this is not Python ({error.msg}). Correct it.") from None


@cache
def read_code(source: bytes) -> tuple[tuple[tuple[str, int, str], ...], str]:
    """What a source imports, as (module, dots before it, name or nothing), and a digest of its code."""
    imports: list[tuple[str, int, str]] = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += ((alias.name, 0, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports += ((node.module or "", node.level, alias.name) for alias in node.names)
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:]  # type: ignore[attr-defined]
    return tuple(imports), hashlib.sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules of effopd and of its own package that the import statements of `module` name, wherever they are.

    Importing a module runs the packages that it is in, too: of effopd's they say nothing, others are counted.
    """
    path, top = module_file(module), module.partition(".")[0]
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    found: list[str] = []
    for named, level, name in _code(module)[0]:
        above = package.split(".")[: package.count(".") + 2 - level] if level else []
        origin = ".".join([*above, *([named] if named else [])])
        if _within(origin, (OWN, top)):
            submodule = f"{origin}.{name}"
            found.append(submodule if name and module_file(submodule) is not None else origin)
    inner = [name for name in (module, *found) if top != OWN and _within(name, (top,))]
    return *found, *(name[:end] for name in inner for end, letter in enumerate(name) if letter == ".")


@cache
def _tree_digest(module: str) -> str:
    return _code(module)[1]


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
