"""The schema as a table for people: config/README.md."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from effopd.config.schema import resolve, run_schema, schema


def parameter_table() -> str:
    """The schema as a Markdown table: parameter, type, default, meaning."""
    rows = ["| parameter | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{name}` | {kind} | {default} | {meaning} |" for name, kind, default, meaning in _rows("", schema())]
    return "\n".join(rows) + "\n"


def _rows(prefix: str, node: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    node = resolve(node)
    if "allOf" in node:
        for branch in node["allOf"]:
            yield from _rows(prefix, branch["then"])
        return
    for keys, child in _alike(node.get("properties", {})):
        name = prefix + (keys[0] if len(keys) == 1 else f"{{{','.join(keys)}}}")
        if "const" in child:
            yield name, f"`{child['const']}`", "", child["description"]
        elif child.get("type") == "array" and child["items"].get("type") == "object":
            yield from _rows(f"{name}[].", child["items"])
        elif child.get("type") != "object":
            yield name, _kind(child), _shown_default(child), child.get("description", "")
        elif name == "runs":
            for own in ("label", "group"):
                node = resolve(run_schema()[own])
                yield f"runs.<name>.{own}", _kind(node), _shown_default(node), node["description"]
            yield "runs.<name>.training, runs.<name>.extrapolation", "mapping", "", child["description"]
        elif name == "evaluation.tasks.<name>.task":  # its keys are those of `task`
            yield name, "mapping", "", child["description"]
        elif isinstance(child.get("additionalProperties"), dict):
            if "properties" not in (others := resolve(child["additionalProperties"])) and "allOf" not in others:
                yield f"{name}.<name>", _kind(others), "", child["description"]
            yield from _rows(f"{name}.<name>.", child["additionalProperties"])
        else:
            yield from _rows(f"{name}.", child)


def _alike(properties: Mapping[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Keys and what they take; neighbors that are one and the same reference, such as splits, together."""
    groups = itertools.groupby(properties.items(), key=lambda item: item[1] if set(item[1]) == {"$ref"} else item)
    for _, group in groups:
        keys, children = zip(*group, strict=True)
        yield list(keys), resolve(children[0])


def _shown_default(node: Mapping[str, Any]) -> str:
    if "default" not in node:
        return ""
    default = node["default"]
    if isinstance(default, str) and "\n" in default:
        return f"`{json.dumps(default)}`"
    return f"`{yaml.safe_dump(default, default_flow_style=True).splitlines()[0]}`"


def _kind(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false",
             "array": "list", "object": "mapping", "null": "null"}  # fmt: skip
    if isinstance(node.get("type"), list):
        return ", ".join(names[kind] for kind in node["type"])
    if node.get("type") == "array":
        return f"list of {names[node['items']['type']]}s"
    if "oneOf" in node:
        return " or ".join(_kind(one) if one.get("type") == "array" else "name" for one in node["oneOf"])
    return names.get(node.get("type", ""), "")
