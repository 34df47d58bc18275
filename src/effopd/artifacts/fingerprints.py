"""Digests that decide what is still valid: canonical JSON, file contents, and the code of a stage."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = "effopd"
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
    """Digest of a module and of every effopd module that it imports, directly or not.

    Comments, docstrings and formatting do not count, so that explaining code does not retrain a model. Modules that
    cannot change a result (`NOT_RESULTS`) are left out.
    """
    return digest({name: _tree_digest(name) for name in sorted(_closure(module))})


@cache
def _closure(module: str) -> frozenset[str]:
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name in found or not _counts(name):
            continue
        found.add(name)
        pending.extend(_imports(name))
    return frozenset(found)


def _counts(module: str) -> bool:
    """Whether a module can change a result."""
    return _within(module, RESULTS) or not _within(module, NOT_RESULTS)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _source(module: str) -> str:
    return _module_path(module).read_text(encoding="utf-8")


@cache
def _module_path(module: str) -> Path:
    """Where a module of the package lies, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations
    base = Path(spec.submodule_search_locations[0]).joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def _imports(module: str) -> tuple[str, ...]:
    """The effopd modules named by the import statements of `module`, those inside functions included."""
    found: list[str] = []
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            found += (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.append(submodule if _module_path(submodule).is_file() else node.module)
    return tuple(found)


@cache
def _tree_digest(module: str) -> str:
    tree = ast.parse(_source(module))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            node.body = body[1:]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
