"""The mutants of a module: mutmut's operators, one at a time, on its source.

mutmut itself leaves alone functions with decorators and everything outside of functions, such as tables of constants;
so its operators are used here and its runner is not.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import libcst as cst
from libcst import metadata
from mutmut.mutation import mutators

# Kinds of statements that compute nothing: types, texts of errors, and checks of what cannot happen.
SKIPPED = (cst.Annotation, cst.Assert, cst.Decorator, cst.Import, cst.ImportFrom, cst.Raise)
# Operators whose mutants end in a TypeError almost always, and cost a run of the tests each.
UNUSED = (mutators.operator_assignment, mutators.operator_dict_arguments)


@dataclass(frozen=True)
class Mutant:
    """A changed source, and what changed in it."""

    line: int
    was: str  # the lines that changed, without indentation
    now: str
    source: str

    @property
    def change(self) -> tuple[str, str]:
        """What tells it from others, whatever stands above it."""
        return self.was, self.now


def mutants_of(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    wrapper = metadata.MetadataWrapper(cst.parse_module(source))
    places, module = wrapper.resolve(metadata.PositionProvider), wrapper.module
    found = {}
    for statement in module.body:  # one at a time: to write a whole module anew for each mutant takes minutes
        text = module.code_for_node(statement)
        for node in _nodes(statement):
            for changed in _changed(node):
                other = module.code_for_node(cst.ensure_type(statement.deep_replace(node, changed), cst.CSTNode))
                was, now = _difference(text, other)
                line = places[node].start.line
                found[line, was, now] = Mutant(line, was, now, source.replace(text, other, 1))
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _nodes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """The node and what is inside it, without what computes nothing."""
    yield node
    for child in node.children:
        strict = isinstance(child, cst.Arg) and child.keyword is not None and child.keyword.value == "strict"
        if not isinstance(child, SKIPPED) and not strict:
            yield from _nodes(child)


def _changed(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in mutators.mutation_operators:
        if not isinstance(node, kind) or operator in UNUSED:
            continue
        for number, changed in enumerate(operator(node)):
            if operator is mutators.operator_string and number:
                continue  # one other text is as good as three
            if operator is mutators.operator_arg_removal and not _lacks_an_argument(node, changed):
                continue
            yield changed


def _lacks_an_argument(call: cst.Call, changed: cst.Call) -> bool:
    """Whether an argument was left out, not replaced by None; `strict` of zip checks what cannot happen."""
    left_out = [arg for arg in call.args if not any(arg is other for other in changed.args)]
    return len(changed.args) < len(call.args) and all(
        arg.keyword is None or arg.keyword.value != "strict" for arg in left_out
    )


def _difference(before: str, after: str) -> tuple[str, str]:
    lines = [
        line
        for line in difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
        if not line.startswith(("---", "+++", "@@"))
    ]
    was, now = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    return was, now
