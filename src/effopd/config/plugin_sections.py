"""What the registry adds to the schema: the names that a key takes, and the keys of entries of other packages."""

from __future__ import annotations

import json
from typing import Any

import yaml

from effopd.common import registry
from effopd.common.errors import ConfigError
from effopd.common.registry import Entry


def with_registered(node: Any, definitions: dict[str, Any]) -> None:
    """Replace, below a schema node, `registered: <kind>` by the names that there are, `without` some.

    `branches: <key>` becomes if/then branches by that key's name, each `#/$defs/<name>`; in other sections the keys of
    an added entry become a mapping of its name, `chosen_by` the key. Raises ConfigError if a package's own schema is
    unusable.
    """
    if isinstance(node, list):
        for child in node:
            with_registered(child, definitions)
    if not isinstance(node, dict):
        return
    for child in list(node.values()):
        with_registered(child, definitions)
    properties = node.get("properties", {})
    for key, child in list(properties.items()):
        if not isinstance(child, dict) or "registered" not in child:
            continue
        kind = child.pop("registered")
        left_out = child.pop("without", ())
        chosen = [entry for name, entry in registry.entries(kind).items() if name not in left_out]
        child["enum"] = [entry.name for entry in chosen]
        if node.pop("branches", None) == key:
            node["allOf"] = [_branch(key, entry, definitions) for entry in chosen]
            continue
        for entry in chosen:
            if (section := _section(entry)) is not None:
                if entry.name in properties:
                    raise ConfigError(f"{entry} has options, and its name is a key of theirs already. Rename it.")
                properties[entry.name] = {**section, "chosen_by": key}


def _branch(key: str, entry: Entry, definitions: dict[str, Any]) -> dict[str, Any]:
    if registry.is_added(entry.kind, entry.name):
        section = _section(entry)
        if section is None or "splits" not in section["properties"]:
            raise ConfigError(f"{entry} has no {entry.name}.schema.yaml beside its module with its `splits`. Add it.")
        said = {"const": entry.name, "description": section.get("description", str(entry).capitalize())}
        definitions[entry.name] = {**section, "properties": {key: said, **section["properties"]}}
    return {"if": {"properties": {key: {"const": entry.name}}}, "then": {"$ref": f"#/$defs/{entry.name}"}}


def _section(entry: Entry) -> dict[str, Any] | None:
    """The schema of an entry's own keys, if it has any. Raises ConfigError if it is not a schema of a mapping."""
    from jsonschema import Draft202012Validator, SchemaError, ValidationError

    if (path := entry.schema_file) is None:
        return None
    try:
        # As JSON, which has no aliases and no keys but text.
        section = json.loads(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
        Draft202012Validator.check_schema(section)
        if not isinstance(section, dict) or not isinstance(section.get("properties"), dict):
            raise ValueError("it describes no `properties`")
        if section.get("type", "object") != "object":
            raise ValueError("it is of no mapping")
        for key, child in section["properties"].items():
            if not isinstance(child, dict) or "$ref" in child:
                raise ValueError(f"`{key}` is no mapping of its own: references and `true` are not read")
            if "default" in child:
                Draft202012Validator(child).validate(child["default"])
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError, SchemaError, ValidationError) as error:
        reason = error.message if isinstance(error, SchemaError | ValidationError) else " ".join(str(error).split())
        raise ConfigError(f"{entry} has a schema that cannot be used, {path} ({reason}). Correct it.") from None
    return {"type": "object", "additionalProperties": False, **section}
