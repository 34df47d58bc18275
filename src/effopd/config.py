"""The configuration: defaults filled in, checked, and refused with one clear line where it cannot be run."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

from effopd.config_checks import problems
from effopd.config_schema import fill, listed, main_group, schema
from effopd.runtime.errors import ConfigError


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with all defaults, checked.

    Raises ConfigError, whose one line names the key, the value and the remedy, where it cannot be run.
    """
    filled: dict[str, Any] = fill(_without_nulls(config), schema())
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


def _validate(config: Mapping[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    errors = list(Draft202012Validator(schema()).iter_errors(config))
    if errors:
        error = min(errors, key=lambda e: (len(e.absolute_path), str(e.path)))
        raise ConfigError(_explain(error))


def _explain(error: Any) -> str:
    """One line for a jsonschema error: the key, the value found, the remedy."""
    path = ".".join(str(part) for part in error.absolute_path)
    value = error.instance
    if error.validator == "additionalProperties":
        return _explain_unknown_key(path, value, error.schema.get("properties", {}))
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in value)
        return f"config: `{path + '.' if path else ''}{missing}` is missing. Add it."
    if error.validator == "propertyNames" or "propertyNames" in error.absolute_schema_path:
        return f"config: the name `{value}` is not usable. Use lower-case letters, digits and underscores."
    found = f"config: `{path}` is {value!r}"
    if error.validator == "type" and isinstance(value, str) and _is_number(value):
        mended = value if "." in value else value.replace("e", ".0e").replace("E", ".0e")
        return f"{found}, which YAML reads as text. Write {mended} without quotes (YAML needs the decimal point)."
    allowed = error.validator_value
    choices = listed(allowed) if isinstance(allowed, list) else ""
    remedies = {
        "type": f"it must be {_article(allowed)}",
        "enum": f"it must be one of {choices}",
        "minimum": f"it must be at least {allowed}",
        "maximum": f"it must be at most {allowed}",
        "exclusiveMinimum": f"it must be greater than {allowed}",
        "exclusiveMaximum": f"it must be less than {allowed}",
        "multipleOf": f"it must be a multiple of {allowed}",
        "minItems": f"it needs at least {allowed} items",
        "maxItems": f"it takes at most {allowed} items",
        "minLength": "it must not be empty",
        "pattern": f"it must contain `{allowed}`",
        "minProperties": "it must not be empty",
        "uniqueItems": "its items must differ",
        "oneOf": "see its meaning in config/README.md: " + str(error.schema.get("description", "")),
    }
    return f"{found}; {remedies.get(error.validator, error.message)}."


def _explain_unknown_key(path: str, value: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    unknown = next(key for key in value if key not in known)
    close = difflib.get_close_matches(str(unknown), known, n=1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Known keys: {', '.join(known)}."
    return f"config: `{path + '.' if path else ''}{unknown}` is not a key. {hint}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _article(kind: str | list[str]) -> str:
    names = {"object": "a mapping", "array": "a list", "number": "a number", "integer": "a whole number",
             "string": "text", "boolean": "true or false"}  # fmt: skip
    return " or ".join(names.get(str(one), str(one)) for one in (kind if isinstance(kind, list) else [kind]))
