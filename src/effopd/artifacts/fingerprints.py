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


def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(b"" if _is_compiled(module) else _source(module))
    except SyntaxError as error:
        place = f"{module_file(module)}, line {error.lineno}"
        raise ConfigError(f"{place}: this is not Python ({error.msg}). Correct it.") from None


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The modules of effopd and of its own package that the import statements of `module` name, wherever they are.

    Importing a module runs the packages that it is in, too: of effopd's they say nothing, others are counted.
    """
    path, top = module_file(module), module.partition(".")[0]
    package = module if path is not None and path.name == "__init__.py" else module.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names if _within(alias.name, (OWN, top)))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names if _within(origin, (OWN, top)) else ():
                submodule = f"{origin}.{alias.name}"
                found.append(origin if module_file(submodule) is None else submodule)
    inner = [name for name in (module, *found) if top != OWN and _within(name, (top,))]
    return *found, *(name[:end] for name in inner for end, letter in enumerate(name) if letter == ".")


@cache
def _tree_digest(module: str) -> str:
    if _is_compiled(module):
        return hashlib.sha256(_source(module)).hexdigest()
    tree = _tree(module)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
