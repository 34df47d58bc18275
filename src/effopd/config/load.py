"""The configuration: defaults filled in, checked, and refused with one clear line if it cannot be run."""

from __future__ import annotations

import copy
import difflib
import math
import re
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from effopd.common.errors import ConfigError
from effopd.common.formatting import shortened, without_passwords
from effopd.config.checks import problems
from effopd.config.http_addresses import problem_of, shown_url
from effopd.config.renamed_keys import with_new_names
from effopd.config.schema import fill, listed, main_group, resolve, schema, typed


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with all defaults, checked. Keys under their old names are read, too.

    Raises ConfigError, whose one line names the key, the value and the remedy, if it cannot be run.
    """
    filled: dict[str, Any] = fill(typed(_without_nulls(with_new_names(config)[0]), schema()), schema())
    _validate(filled)
    for run in filled["runs"].values():
        run.setdefault("group", main_group())
    for other in filled["evaluation"]["tasks"].values():
        other["task"] = _to_evaluate_on(other["task"])
        other.setdefault("samples", filled["evaluation"]["samples"])
    for problem in problems(filled):
        raise ConfigError(f"config: {problem}")
    return filled


def _without_nulls(value: Any) -> Any:
    """A copy without the keys that are null: with one, an overlay takes out what a file before it put in."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    return copy.deepcopy(value)


def _to_evaluate_on(task: dict[str, Any]) -> dict[str, Any]:
    """What is used of a task that nothing is trained on: not its other splits, nor a corpus."""
    used = {key: value for key, value in task.items() if key != "corpus"}
    return {**used, "splits": {"test": task["splits"]["test"]}}


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, FormatChecker

    formats = FormatChecker(formats=())
    formats.checks("regex", raises=(re.error, OverflowError, RecursionError, FutureWarning))(_is_regex)
    formats.checks("http-url", raises=ValueError)(_is_http_url)
    return Draft202012Validator(schema(), format_checker=formats)


def _is_regex(value: object) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # `[[a]`, which is to mean something else one day
        return not isinstance(value, str) or bool(re.compile(value))


def _is_http_url(value: object) -> bool:
    """Raise ValueError, whose message says why, if a text is no base of an HTTP interface."""
    if isinstance(value, str) and (problem := problem_of(value)):
        raise ValueError(problem)
    return True


def _validate(config: Mapping[str, Any]) -> None:
    errors = list(_validator().iter_errors(config))
    if errors:
        error = min(errors, key=lambda e: (len(e.absolute_path), str(e.path)))
        raise ConfigError(without_passwords(_explain(error)))  # of `runtime.endpoints`


def _explain(error: Any) -> str:
    """One line for a jsonschema error: the key, the value found, the remedy."""
    path = _path(error)
    value = error.instance
    if error.validator == "oneOf":
        return _explain_alternatives(error)
    if error.validator == "additionalProperties":
        return _explain_unknown_key(path, value, error.schema.get("properties", {}))
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in value)
        return f"config: `{path + '.' if path else ''}{missing}` is missing. Add it."
    if "propertyNames" in error.absolute_schema_path:
        name = _key_text(value)
        return (
            f"config: `{path}.{name}`: the name `{name}` is not usable. Use at most 64 lower-case letters, digits and "
            "underscores, a letter first, and none of nan, null, true, false, inf."
        )
    found = f"config: `{path}` is {_shown(value)}"
    if error.validator == "type" and isinstance(value, str) and _is_number(value) and _takes_numbers(error):
        return f"{found}, which is text. Write {value} without quotes."
    if error.validator == "format" and error.validator_value == "http-url":
        return (
            f"config: `{path}` is {_shown(shown_url(value))}, which is no usable address ({error.cause}). Write the "
            "base of the server's interface, such as http://node7:8000/v1."
        )
    allowed = error.validator_value
    remedies = {
        "type": f"it must be {_article(allowed)}",
        "enum": f"it must be one of {listed(allowed) if isinstance(allowed, list) else ''}",
        "const": f"it must be {_shown(allowed)}",
        "minimum": f"it must be at least {allowed}",
        "maximum": f"it must be at most {allowed}",
        "exclusiveMinimum": f"it must be greater than {allowed}",
        "exclusiveMaximum": f"it must be less than {allowed}",
        "multipleOf": f"it must be a multiple of {allowed}",
        "minItems": f"it needs at least {allowed} item{'' if allowed == 1 else 's'}",
        "maxItems": f"it takes at most {allowed} items",
        "minLength": "it must not be empty",
        "pattern": f"it must contain `{allowed}`" if "\\" not in str(allowed) else "write one line of text",
        "format": f"it must be a regular expression ({error.cause}). Correct it, or escape what is no operator with \\",
        "minProperties": "it must not be empty",
        "uniqueItems": "its items must differ",
    }
    return f"{found}; {remedies.get(error.validator, error.message)}{_in_quotes(error)}."


def _path(error: Any) -> str:
    return ".".join(_key_text(str(part)) for part in error.absolute_path)


def _explain_alternatives(error: Any) -> str:
    """Of a key that takes a word or a list: what is wrong with the list, or else what it takes."""
    inside = [one for one in error.context if len(one.path) or one.validator not in ("type", "enum")]
    if inside:
        return _explain(inside[0])
    takes = [
        _article(one["type"]) if "type" in one else listed(one["enum"]) for one in map(resolve, error.validator_value)
    ]
    path = _path(error)
    return f"config: `{path}` is {_shown(error.instance)}; it must be one of {', or '.join(takes)}."


def _shown(value: Any) -> str:
    """A value as configuration files write it, at most a line of it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        value = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, Mapping):
        value = f"{{{', '.join(f'{_key_text(key)}: {_shown(child)}' for key, child in value.items())}}}"
    else:
        value = repr(value)
    return shortened(value, 120)


def _key_text(key: str) -> str:
    """A key that may be anything, fit for one line."""
    return shortened(repr(key)[1:-1] or "''", 80)


def _takes_numbers(error: Any) -> bool:
    return not {"integer", "number"}.isdisjoint(
        [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
    )


def _in_quotes(error: Any) -> str:
    """What to do with a number or truth value that is meant as text."""
    meant = error.validator == "type" and error.validator_value == "string"
    return ". Write it in quotes" if meant and isinstance(error.instance, (int, float)) else ""


def _explain_unknown_key(path: str, value: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    unknown = _key_text(next(key for key in value if key not in known))
    close = difflib.get_close_matches(unknown, known, n=1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}."
    return f"config: `{path + '.' if path else ''}{unknown}` is not a key. {hint}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _article(kind: str | list[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "number": "a number", "integer": "a whole number",
             "string": "text", "boolean": "true or false"}  # fmt: skip
    return " or ".join(names.get(str(one), str(one)) for one in (kind if isinstance(kind, list) else [kind]))
