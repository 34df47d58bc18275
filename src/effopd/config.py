"""The configuration: defaults filled in, checked, and refused with one clear line where it cannot be run."""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from effopd.extrapolation.schedule import trigger_steps
from effopd.runtime.errors import ConfigError

RUN_SECTIONS = ("training", "extrapolation")  # what a run may override
RESERVED_RUN_NAMES = ("models",)  # results/evaluation/models/ holds the models' own evaluations


@cache
def schema() -> dict[str, Any]:
    """The schema, which holds every default."""
    text = resources.files("effopd").joinpath("config.schema.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with all defaults, checked.

    Raises ConfigError, whose one line names the key, the value and the remedy, where it cannot be run.
    """
    filled: dict[str, Any] = _fill(copy.deepcopy(dict(config)), schema())
    _validate(filled)
    _check_meaning(filled)
    return filled


def run_settings(config: Mapping[str, Any], run: str) -> dict[str, Any]:
    """The `training` and `extrapolation` sections of a run: the defaults with its overrides."""
    overrides = config["runs"][run]
    return {section: _merge(config[section], overrides.get(section, {})) for section in RUN_SECTIONS}


def _merge(base: Any, override: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(override, Mapping):
        return copy.deepcopy(override)
    keys = [*base, *(key for key in override if key not in base)]
    return {key: _merge(base[key], override[key]) if key in base and key in override
            else copy.deepcopy(override.get(key, base.get(key))) for key in keys}  # fmt: skip


def _resolve(node: Mapping[str, Any]) -> dict[str, Any]:
    """A schema node with its $ref followed; keys beside the $ref win."""
    if "$ref" not in node:
        return dict(node)
    target: Any = schema()
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**_resolve(target), **{key: value for key, value in node.items() if key != "$ref"}}


def _branches(node: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """The node that applies to a value whose `kind` chooses between if/then branches."""
    for branch in node.get("allOf", []):
        if branch["if"]["properties"]["kind"]["const"] == value.get("kind"):
            return _resolve(branch["then"])
    return dict(node)


def _fill(value: Any, node: Mapping[str, Any]) -> Any:
    """Fill in the defaults below a value."""
    node = _resolve(node)
    if not isinstance(value, dict):
        return value
    node = _branches(node, value)
    for key, child in node.get("properties", {}).items():
        child = _resolve(child)
        if key not in value and "default" in child:
            value[key] = copy.deepcopy(child["default"])
        if key in value and key != "runs":  # a run's missing keys come from the sections it overrides, not from here
            value[key] = _fill(value[key], child)
    others = node.get("additionalProperties")
    if isinstance(others, dict):
        for key in value.keys() - node.get("properties", {}).keys():
            value[key] = _fill(value[key], others)
    return value


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
    choices = _listed(allowed) if isinstance(allowed, list) else ""
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
    return names.get(str(kind), str(kind))


def _listed(values: list[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _check_meaning(config: Mapping[str, Any]) -> None:
    """What a schema cannot say: names that must exist, numbers that must fit each other."""
    for problem in _problems(config):
        raise ConfigError(f"config: {problem}")


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    task = config["task"]
    if task["max_terms"] < task["min_terms"]:
        yield f"`task.max_terms` is {task['max_terms']}, less than `task.min_terms` ({task['min_terms']}). Raise it."
    yield from _model_problems(config)
    for run in config["runs"]:
        if run in RESERVED_RUN_NAMES:
            yield f"`runs.{run}`: the name is reserved. Choose another."
        yield from _run_problems(config, run, run_settings(config, run))
    if config["evaluation"]["baseline"] not in config["runs"]:
        yield (
            f"`evaluation.baseline` is {config['evaluation']['baseline']!r}, which is no run. "
            f"Name one of: {_listed(list(config['runs']))}."
        )


def _model_problems(config: Mapping[str, Any]) -> Iterator[str]:
    models = config["models"]
    for name, model in models.items():
        if model["kind"] == "pretrain":
            if model["batch_size"] < model["ranks"]:
                yield f"`models.{name}.ranks` is {model['ranks']}, more than the sequences of a step. Lower it."
            if model["heads"] % model["kv_heads"]:
                yield f"`models.{name}.heads` is {model['heads']}, not a multiple of `kv_heads` ({model['kv_heads']})."
            continue
        if model["prompts_per_step"] < model["ranks"]:
            yield f"`models.{name}.ranks` is {model['ranks']}, more than the prompts of a step. Lower it."
        seen = [name]
        while (origin := models[seen[-1]].get("init")) is not None:
            if origin not in models:
                known = _listed(list(models))
                yield f"`models.{seen[-1]}.init` is {origin!r}, which is no model. Name one of: {known}."
                return
            if origin in seen:
                yield f"`models.{name}.init` leads back to itself ({' -> '.join([*seen, origin])}). Break the circle."
                return
            seen.append(origin)


def _run_problems(config: Mapping[str, Any], run: str, settings: Mapping[str, Any]) -> Iterator[str]:
    training, extrapolation = settings["training"], settings["extrapolation"]
    overrides = config["runs"][run]

    def key(section: str, name: str) -> str:
        return f"`runs.{run}.{section}.{name}`" if name in overrides.get(section, {}) else f"`{section}.{name}`"

    for role in ("student", "teacher"):
        if training[role] not in config["models"]:
            yield (
                f"{key('training', role)} is {training[role]!r}, which is no model. "
                f"Name one of: {_listed(list(config['models']))}."
            )
    rollouts = training["prompts_per_step"] * training["samples_per_prompt"]
    if training["prompts_per_step"] > config["task"]["splits"]["train"]:
        yield (
            f"{key('training', 'prompts_per_step')} is {training['prompts_per_step']}, more than the training split "
            f"holds (`task.splits.train`: {config['task']['splits']['train']}). Lower it or enlarge the split."
        )
    if training["batch_size"] > rollouts:
        yield (
            f"{key('training', 'batch_size')} is {training['batch_size']}, more than the {rollouts} rollouts of "
            "a step. Lower it."
        )
    coefficients = extrapolation["coefficients"]
    if any(later <= earlier for earlier, later in itertools.pairwise(coefficients)):
        yield f"{key('extrapolation', 'coefficients')} is {coefficients}; it must increase. Sort it and drop repeats."
    try:
        trigger_steps(extrapolation["triggers"], training["steps"])
    except ValueError as error:
        yield f"{key('extrapolation', 'triggers')}: {error}"
    gate = extrapolation["gate"]
    available = config["task"]["splits"][gate["source"]]
    if gate["examples"] > available:
        yield (
            f"{key('extrapolation', 'gate')}.examples is {gate['examples']}, more than its source holds "
            f"(`task.splits.{gate['source']}`: {available}). Lower it or enlarge the split."
        )


def parameter_table() -> str:
    """The schema as a Markdown table: parameter, type, default, meaning."""
    rows = ["| parameter | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{name}` | {kind} | {default} | {meaning} |" for name, kind, default, meaning in _rows("", schema())]
    return "\n".join(rows) + "\n"


def _rows(prefix: str, node: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    node = _resolve(node)
    for key, child in node.get("properties", {}).items():
        child = _resolve(child)
        name = f"{prefix}{key}"
        if key == "kind" and "const" in child:
            yield name, f"`{child['const']}`", "", child["description"]
        elif child.get("type") != "object":
            default = (
                f"`{yaml.safe_dump(child['default'], default_flow_style=True).splitlines()[0]}`"
                if "default" in child
                else ""
            )
            yield name, _kind(child), default, child.get("description", "")
        elif name == "runs":
            yield (
                "runs.<name>.label",
                "text",
                "",
                _resolve(child["additionalProperties"])["properties"]["label"]["description"],
            )
            yield "runs.<name>.training, runs.<name>.extrapolation", "mapping", "", child["description"]
        elif "additionalProperties" in child and isinstance(child["additionalProperties"], dict):
            for branch in _resolve(child["additionalProperties"])["allOf"]:
                yield from _rows(f"{name}.<name>.", branch["then"])
        else:
            yield from _rows(f"{name}.", child)


def _kind(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    if node.get("type") == "array":
        return f"list of {names[node['items']['type']]}s"
    return names.get(node.get("type", ""), "name or list of whole numbers")
