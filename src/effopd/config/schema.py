"""The configuration's schema, which holds every default, and what follows from it: sections filled in and merged."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml

from effopd.common.errors import ConfigError
from effopd.config.plugin_sections import with_registered

RUN_SECTIONS = ("training", "extrapolation")  # what a run may override
TRUTH = {"yes": True, "on": True, "no": False, "off": False}  # by YAML 1.1; by 1.2 text
PLAIN_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")  # by YAML 1.2; by 1.1 perhaps text
LARGEST_INTEGER = 2**63 - 1  # what tables can hold
KINDS = {str: "string", bool: "boolean", int: "integer", float: "number"}


class Unquoted(str):
    """Text that was written without quotes and that YAML's versions read differently: its key's type decides."""


@cache
def schema() -> dict[str, Any]:
    """The schema, which holds every default, with the names that are registered and their sections.

    Raises ConfigError if another package registers something unusable.
    """
    text = resources.files("effopd.config").joinpath("schema.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: at once
    loaded: dict[str, Any] = json.loads(json.dumps(yaml.load(text, Loader=loader)))  # aliases become copies
    with_registered(loaded, loaded["$defs"])
    return loaded


def main_group() -> str:
    """The group of a run that names none."""
    return str(run_schema()["group"]["default"])


def run_schema() -> dict[str, Any]:
    """The keys of a run."""
    found: dict[str, Any] = schema()["properties"]["runs"]["additionalProperties"]["properties"]
    return found


def section_defaults(section: str) -> Any:
    """A section of which nothing was said."""
    return fill({}, schema()["properties"][section])


def run_settings(config: Mapping[str, Any], run: str) -> dict[str, Any]:
    """The `training` and `extrapolation` sections of a run: the defaults with its overrides.

    What a mapping that only the run has (`training.lora`) leaves open is filled in; options of what it does not choose
    are left out.
    """
    overrides, settings = config["runs"][run], {}
    for section in RUN_SECTIONS:
        node = schema()["properties"][section]
        settings[section] = fill(merged(config[section], overrides.get(section, {})), node)
        for *path, name in unchosen(settings[section], node):
            del below(settings[section], path)[name]
    return settings


def unchosen(value: Any, node: Mapping[str, Any]) -> list[list[str]]:
    """Where options of a registered name are, below a filled value, that the key beside them does not choose."""
    if not isinstance(value, Mapping):
        return []
    node = branch_of(resolve(node), value)
    others = node.get("additionalProperties") or {}
    found = []
    for key, own in value.items():
        child = node.get("properties", {}).get(key, others)
        if value.get(child.get("chosen_by", key)) != key and "chosen_by" in child:
            found.append([key])
        elif key != "runs":
            found += [[key, *path] for path in unchosen(own, child)]
    return found


def below(section: Any, path: Sequence[str]) -> Any:
    """What a section holds at the end of a path of keys; None if it does not say."""
    for part in path:
        section = section.get(part) if isinstance(section, Mapping) else None
    return section


def merged(base: Any, override: Any) -> Any:
    """Mappings merged key by key, as Snakemake merges configuration files; anything else is replaced."""
    if not isinstance(base, Mapping) or not isinstance(override, Mapping):
        return copy.deepcopy(override)
    keys = [*base, *(key for key in override if key not in base)]
    return {key: merged(base[key], override[key]) if key in base and key in override
            else copy.deepcopy(override.get(key, base.get(key))) for key in keys}  # fmt: skip


def resolve(node: Mapping[str, Any]) -> dict[str, Any]:
    """A schema node with its $ref followed; keys beside the $ref win."""
    if "$ref" not in node:
        return dict(node)
    target: Any = schema()
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**resolve(target), **{key: value for key, value in node.items() if key != "$ref"}}


def branch_of(node: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """The node that applies to a value one of whose keys chooses between if/then branches."""
    for branch in node.get("allOf", []):
        ((key, condition),) = branch["if"]["properties"].items()
        if condition["const"] == value.get(key, node["properties"][key].get("default")):
            chosen = resolve(branch["then"])
            return {**chosen, "properties": {**chosen["properties"], key: node["properties"][key]}}
    return dict(node)


def typed(value: Any, node: Mapping[str, Any], key: str = "") -> Any:
    """A copy of a value with numbers, text and truth values as a schema node asks for them.

    Whole floats become integers, and unquoted text is read by its key's type. Raises ConfigError if that leaves it
    ambiguous.
    """
    node = resolve(node)
    if isinstance(value, Mapping):
        known = branch_of(node, value).get("properties", {})
        others = node.get("additionalProperties") or {}
        return {
            str(name): typed(child, known.get(name, others), f"{key}.{name}".lstrip("."))
            for name, child in value.items()
        }
    if isinstance(value, list):
        items: Any = next((one["items"] for one in [node, *node.get("oneOf", [])] if "items" in one), {})
        return [typed(item, items, f"{key}.{place}") for place, item in enumerate(value)]
    kinds = _kinds(node)
    if isinstance(value, Unquoted):
        value = _read_as(value, kinds, key)
    if not (isinstance(value, float) and value.is_integer() and "integer" in kinds and "number" not in kinds):
        return value
    if abs(value) > LARGEST_INTEGER:
        raise ConfigError(f"config: `{key}` is {value:g}, beyond {LARGEST_INTEGER}. Write a smaller number.")
    return int(value)


def _kinds(node: Mapping[str, Any]) -> set[str]:
    """The JSON types of the single values that a schema node takes; none if it does not say."""
    kinds = node.get("type", [])
    named = {kinds} if isinstance(kinds, str) else set(kinds)
    return named.union(
        (KINDS[type(value)] for value in node.get("enum", [])), *(_kinds(resolve(one)) for one in node.get("oneOf", []))
    )


def _read_as(text: Unquoted, kinds: set[str], key: str) -> Any:
    """What unquoted text means for a key that takes values of these JSON types."""
    truth, number = TRUTH.get(text.lower()), bool(kinds & {"integer", "number"})
    if truth is not None and "boolean" in kinds:
        if "string" in kinds:
            raise ConfigError(
                f"config: `{key}` is {text}, a truth value or a word. Write true or false, or the word in quotes."
            )
        return truth
    if truth is not None or not number:
        return str(text)
    if not PLAIN_NUMBER.fullmatch(text):
        raise ConfigError(
            f"config: `{key}` is {text}, which readers of YAML take for different numbers. Write it without leading "
            "zeros and colons, or in quotes if it is text."
        )
    if "string" in kinds:
        return str(text)
    if not math.isfinite(float(text)):
        raise ConfigError(f"config: `{key}` is {text}, which is not finite. Write a smaller number.")
    return float(text)


def fill(value: Any, node: Mapping[str, Any]) -> Any:
    """Fill in the defaults below a value."""
    node = resolve(node)
    if isinstance(value, list) and "items" in node:
        return [fill(item, node["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    node = branch_of(node, value)
    for key, child in node.get("properties", {}).items():
        child = resolve(child)
        if key not in value and "default" in child:
            value[key] = copy.deepcopy(child["default"])
        if "chosen_by" in child and value.get(child["chosen_by"]) == key:
            value.setdefault(key, {})
        if key in value and key != "runs":  # a run's missing keys come from the sections it overrides, not from here
            value[key] = fill(value[key], child)
    others = node.get("additionalProperties")
    if isinstance(others, dict):
        for key in value.keys() - node.get("properties", {}).keys():
            value[key] = fill(value[key], others)
    return value


def listed(values: list[Any]) -> str:
    """Names as error messages list them."""
    return ", ".join(str(value) for value in values)
