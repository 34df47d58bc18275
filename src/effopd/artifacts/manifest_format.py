"""The form of a manifest: the types of the fields that are read, names of files, and the digest that finds edits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effopd.artifacts.fingerprints import digest
from effopd.common.errors import ArtifactError
from effopd.common.formatting import shortened

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

FORMAT = 2  # under `recorded`, with a digest; manifests of the first format have neither
WHEN = "%Y-%m-%dT%H:%M:%SZ"  # UTC
_LONGEST_NAME = 255
_ANY_KIND, _RECORD, _CHECKS = " any kind", " record", " checks"  # forms beside those of the kinds in `_RESULTS`


def seal(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the format and a digest of all the rest under `recorded`."""
    formatted = {**entry, "recorded": {**entry["recorded"], "format": FORMAT}}
    return {**formatted, "recorded": {**formatted["recorded"], "digest": _content_digest(formatted)}}


def _content_digest(entry: Mapping[str, Any]) -> str:
    recorded = {key: value for key, value in entry["recorded"].items() if key != "digest"}
    return digest({**entry, "recorded": recorded})


def is_sealed(recorded: Mapping[str, Any]) -> bool:
    """Whether a manifest has a digest; those that an older version wrote do not, and are read for one release."""
    return "format" in recorded or "digest" in recorded


def check_manifest(entry: Any, path: Path) -> None:
    """Raise ArtifactError, which names the field, unless a JSON value has the form of the manifest at `path`."""
    remedy = "Delete it and run the workflow again."
    if not isinstance(entry, dict) or set(entry) != _FIELDS.keys():
        raise ArtifactError(f"{path} is not a manifest. {remedy}")
    kind = str(entry["kind"])
    _check_form(entry, path, kind if kind in _RESULTS else _ANY_KIND)
    for name in entry["files"]:
        if not is_plain(name) or name == path.name:
            raise ArtifactError(f"{path} is damaged (it lists a file {name!r}, which is no plain name). {remedy}")
    try:
        time.strptime(entry["recorded"]["finished"], WHEN)
    except ValueError:
        raise ArtifactError(f"{path} is damaged (its `recorded.finished` is no time). {remedy}") from None


def _check_form(entry: Any, path: Path, form: str) -> None:
    """Raise ArtifactError, which names the field, unless the JSON value of the file `path` has a form of `_schema`."""
    if (error := next(_validator(form).iter_errors(entry), None)) is not None:
        field, found = ".".join(map(str, error.absolute_path)), shortened(repr(error.instance), 60)
        why = error.message if error.validator == "required" else f"it is {found}"
        place = f"its `{field}`: " if field else ""
        raise ArtifactError(f"{path} is damaged ({place}{shortened(why, 200)}). Delete it and run the workflow again.")


@cache
def _validator(form: str) -> Draft202012Validator:
    """Of what has a form: made once, since commands read thousands of manifests."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    types = Draft202012Validator.TYPE_CHECKER.redefine("values", lambda _, found: _are_values(found))
    validator: Draft202012Validator = extend(Draft202012Validator, type_checker=types)(_schema(form))
    return validator


def _are_values(found: Any) -> bool:
    """Whether it is a list of numbers and nulls. As a schema of its items that would take longer than all the rest."""
    return isinstance(found, list) and all(value is None or type(value) in (int, float) for value in found)


def _schema(form: str) -> dict[str, Any]:
    """The schema of a record, of what a preflight found, or of a manifest of a kind."""
    if form == _RECORD:
        return _object(fingerprint=_STRING, files=_all(_object(policy=_STRING)), recorded=_all(_STRING))
    if form == _CHECKS:
        row = _object(check=_STRING, outcome=_STRING, measured=_STRING, why=_STRING, remedy=_STRING)
        return _object(recorded=_object(checks={"type": "array", "items": row}))
    return _object(**{**_FIELDS, "result": _RESULTS.get(form, _FIELDS["result"])})


def check_seal(entry: Mapping[str, Any], path: Path) -> None:
    """Raise ArtifactError if a manifest was edited after it was written."""
    if is_sealed(entry["recorded"]) and entry["recorded"].get("digest") != _content_digest(entry):
        raise ArtifactError(
            f"{path} was edited: its digest does not match what it records. Delete it and run the workflow again."
        )


def is_plain(name: str) -> bool:
    """Whether a name means a file below its manifest's folder: parts between `/`, none of them empty, `.` or `..`."""
    return all(
        part not in ("", ".", "..") and part.isprintable() and "\\" not in part and len(part.encode()) <= _LONGEST_NAME
        for part in name.split("/")
    )


def _object(required: bool = True, /, **properties: Any) -> dict[str, Any]:
    """The schema of an object that has these properties (or may have, where not `required`), and any others."""
    return {"type": "object", "properties": properties, "required": [*properties] if required else []}


def _all(values: Any, **options: Any) -> dict[str, Any]:
    """The schema of an object all of whose values are alike."""
    return {"type": "object", "additionalProperties": values, **options}


_STRING, _NUMBER, _MAYBE = {"type": "string"}, {"type": "number"}, {"type": ["number", "null"]}
_COUNT, _MARK = {"type": "integer", "minimum": 0}, {"type": "boolean"}
_NORMS = _object(moving=_NUMBER)
_TRIAL = _object(coefficient=_NUMBER, value=_MAYBE, per_item={"type": "values"})
_TRIALS = {"type": "array", "items": _TRIAL}
_TRIED = {**_TRIAL, "properties": {**_TRIAL["properties"], "tie": _MARK}}  # which older versions did not write
_DECISION = _object(
    False, step=_COUNT, coefficient=_NUMBER, metric=_STRING, current=_TRIAL, trials={"type": "array", "items": _TRIED},
    update_norm=_NORMS, tie=_MARK,
)  # fmt: skip
_RESULTS = {  # by kind, of what other stages and commands read
    "model": _object(False, steps=_COUNT, parameters=_NUMBER),
    "state": _object(False, step=_COUNT, optimizer_steps=_COUNT),
    "candidates": _object(False, step=_COUNT, values=_TRIALS, update_norm=_NORMS),
    **dict.fromkeys(("decision", "ledger"), _DECISION),  # the latter in results of version 0.1
    "prediction": _DECISION,
    "evaluation": _object(False, step=_COUNT, accuracy=_NUMBER, reverse_kl=_MAYBE, completions=_COUNT),
}
_COST = _object(
    stage=_STRING, step=_COUNT, seconds=_NUMBER, generated_tokens=_NUMBER, scored_tokens=_NUMBER, trained_tokens=_NUMBER
)
_FIELDS = {
    "kind": _STRING,
    "fingerprint": {"type": "string", "pattern": r"^[0-9a-f]{32}\Z"},
    "spec": _object(False, step=_COUNT, start=_COUNT, end=_COUNT, code=_STRING, training={"type": "object"}),
    "parents": _all(_STRING, propertyNames={"minLength": 1}),
    "files": _all(_object(size=_COUNT, sha256={"type": "string", "pattern": r"^[0-9a-f]{64}\Z"})),
    "recorded": _object(
        seconds=_NUMBER,
        finished=_STRING,
        cost={"type": "array", "items": _COST},
        versions=_all(_STRING),
        host=_object(platform=_STRING),
    ),
    "result": {"type": "object"},
}


def check_record(entry: Any, path: Path) -> None:
    """Raise ArtifactError unless a JSON value has the form of a record of files that were deleted on purpose."""
    _check_form(entry, path, _RECORD)
    if not entry["files"].keys() <= entry["recorded"].keys():
        raise ArtifactError(f"{path} is damaged (a file's time is missing). Delete it and run the command again.")


def check_checks(entry: Any, path: Path) -> None:
    """Raise ArtifactError unless a JSON value has the form of what a preflight found."""
    _check_form(entry, path, _CHECKS)
