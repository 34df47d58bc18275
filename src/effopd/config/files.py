"""Reads configuration files strictly (what YAML would misread is refused by file, line and key), and writes them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from effopd.common.errors import ConfigError
from effopd.common.formatting import shortened
from effopd.config.renamed_keys import Key, lines_about, with_new_names
from effopd.config.schema import LARGEST_INTEGER, PLAIN_NUMBER, TRUTH, Unquoted, merged

LARGEST_FILE = 2**20  # bytes
MOST_VALUES = 20_000  # with all aliases followed
DEEPEST = 50

CONSTANTS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
CONSTANTS |= dict.fromkeys(("true", "True", "TRUE"), True) | dict.fromkeys(("false", "False", "FALSE"), False)
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# Numbers, times and truth values by one version of YAML, text by another.
AMBIGUOUS = re.compile(
    r"(?i:yes|no|on|off)"
    r"|[-+]?0[0-9_]+"  # octal by YAML 1.1
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"  # sexagesimal by YAML 1.1
    rf"|{PLAIN_NUMBER.pattern}"
)


@dataclass
class Configuration:
    """What configuration files say together, and where each key was last written: (file, line)."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # about keys under their old names

    def renamed(self) -> Configuration:
        """The same with new names for old ones. Raises ConfigError if a section has a key under both."""
        with self.located():
            values, renamed = with_new_names(self.values)
        places = self.places | {new: self.places[old] for old, new in renamed.items() if old in self.places}
        return Configuration(values, places, list(lines_about(renamed, self.places)))

    def add(self, other: Configuration) -> None:
        """Put what another one says over this one."""
        self.values = merged(self.values, other.values)
        self.places.update(other.places)
        self.warnings += other.warnings

    @contextmanager
    def located(self) -> Iterator[None]:
        """Say in a ConfigError raised inside where the first of the keys that it names is written, or its section."""
        try:
            yield
        except ConfigError as error:
            message = str(error)
            named = [tuple(key.split(".")) for key in re.findall(r"`([^`]+)`", message)]
            written = [self.places[key] for key in named if key in self.places]
            around = [self.places[key[:-1]] for key in named[:1] if key[:-1] in self.places]
            if not message.startswith("config: ") or not written + around:
                raise
            raise ConfigError(f"{(written + around)[0]}: {message.removeprefix('config: ')}") from None


def read_files(paths: Sequence[Path], assignments: Sequence[str] = ()) -> Configuration:
    """What configuration files say, later ones over earlier ones, and `key=value` assignments over all of them.

    Raises ConfigError if one cannot be read or is ambiguous.
    """
    configuration = Configuration()
    for path in paths:
        configuration.add(read_file(path))
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        reader = _Reader(text, f"--config {key}", (key,))
        value = reader.document()
        given = Configuration({key: value}, dict.fromkeys([(key,), *reader.places], reader.name))
        configuration.add(given.renamed())
    return configuration


def read_file(path: Path) -> Configuration:
    """What one configuration file says: nothing if it is empty. Raises ConfigError if it cannot be read."""
    name = _shown(path)
    try:
        if not path.is_file():
            what = "is no file" if path.exists() else "does not exist"
            raise ConfigError(f"{name} {what}. Name the configuration that the workflow runs with.")
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{name} is larger than {LARGEST_FILE} bytes: it is no configuration. Name another file.")
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{name} cannot be read ({reason}). Correct its name or its permissions.") from None
    reader = _Reader(_decoded(content, name), name)
    value = reader.document()
    if value is not None and not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise ConfigError(f"{name} holds {kind}. Write sections such as `training:` with their keys below.")
    return Configuration(value or {}, reader.places).renamed()


def _shown(path: Path) -> str:
    """A path, relative to the working directory if it is below it."""
    return str(path.relative_to(Path.cwd()) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path)


def _decoded(content: bytes, name: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{name} is UTF-16. Save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{name}, line {line}: the byte 0x{content[error.start]:02x} is not UTF-8. Save the file as UTF-8."
        ) from None


class _Reader:
    """Builds the value of one YAML document from the parser's events; `places` says where each key is written."""

    def __init__(self, text: str, name: str, path: Key = ()) -> None:
        self.text, self.name, self.path = text, name, path
        self.places: dict[Key, str] = {}
        self._events: Iterator[Any] = iter(())  # of PyYAML's parser
        self._anchors: dict[str, tuple[Any, int]] = {}  # values, and how many values they consist of
        self._count = 0
        self._line = 1

    def document(self) -> Any:
        """The document's value; None if there is none. Raises ConfigError if it is not clear what it means."""
        try:
            self._events = yaml.parse(self.text, Loader=yaml.BaseLoader)
            next(self._events)
            if isinstance(next(self._events), yaml.StreamEndEvent):
                return None
            value = self._value(next(self._events), self.path)
            next(self._events)
            after: Any = next(self._events)
            self._line = after.start_mark.line + 1
            if not isinstance(after, yaml.StreamEndEvent):
                raise self._refused("a second document begins here. Write one file for each, or leave the `---` out")
            return value
        except yaml.reader.ReaderError as error:
            self._line = self.text.count("\n", 0, error.position) + 1
            raise self._refused(
                f"the character U+{ord(self.text[error.position]):04X} is not allowed. Remove it"
            ) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._line = mark.line + 1 if mark else self._line
            remedy = "Indent with spaces, not with tabs" if "\\t" in str(error.problem) else "Correct it"
            raise self._refused(f"this is not YAML ({error.problem or error.context}). {remedy}") from None
        except (
            yaml.YAMLError,
            ValueError,
            OverflowError,
        ) as error:  # ValueError: `%YAML 1.` or an escape beyond Unicode
            raise self._refused(f"this is not YAML ({error}). Correct it") from None

    def _refused(self, why: str, path: Key | None = None) -> ConfigError:
        key = "" if path is None else f"`{shortened(repr('.'.join(path))[1:-1], 200)}` " if path else "the file "
        return ConfigError(f"{self.name}, line {self._line}: {key}{why}.")

    def _value(self, event: Any, path: Key) -> Any:
        self._line = event.start_mark.line + 1
        self._count += 1
        if self._count > MOST_VALUES:
            raise self._refused(f"with all aliases followed there are more than {MOST_VALUES} values. Write fewer")
        if len(path) > DEEPEST:
            raise self._refused(f"sections are nested more than {DEEPEST} deep. Write fewer levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        before = self._count
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path)
        else:
            self._check_tag(event, path)
            value = self._list(path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(path)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._count - before + 1)
        return value

    def _alias(self, event: Any, path: Key) -> Any:
        if event.anchor not in self._anchors:
            why = f"is the alias `*{event.anchor}` of an anchor that is not complete above it. Write the value"
            raise self._refused(why, path)
        value, count = self._anchors[event.anchor]
        self._count += count
        return value

    def _check_tag(self, event: Any, path: Key) -> None:
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._refused(f"has the tag `{tag}`, which is not read. Write a plain value", path)

    def _list(self, path: Key) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, str(len(items)))))
        return items

    def _mapping(self, path: Key) -> dict[str, Any]:
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        shared: list[Mapping[str, Any]] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path)
            if key in lines:
                raise self._refused(f"is written twice, first in line {lines[key]}. Keep one of them", (*path, key))
            lines[key] = self._line
            self.places[(*path, key)] = f"{self.name}, line {self._line}"
            value = self._value(next(self._events), (*path, key))
            if key == "<<" and isinstance(event, yaml.ScalarEvent) and event.style is None:
                shared += self._shared(value, path)
            else:
                own[key] = value
        for mapping in shared:
            own = {**mapping, **own}
        return own

    def _shared(self, value: Any, path: Key) -> list[dict[str, Any]]:
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in mappings):
            raise self._refused("does not name mappings to take keys from. Write `<<: *anchor`", (*path, "<<"))
        return mappings

    def _key(self, event: Any, path: Key) -> str:
        self._line = event.start_mark.line + 1
        if not isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
            raise self._refused("has a list or mapping as a key. Write text", path)
        key = self._value(event, path)
        if not isinstance(key, str) or (isinstance(key, Unquoted) and key.lower() not in TRUTH):
            shown = getattr(event, "value", None) or "null"
            raise self._refused(f"has the key {shortened(shown, 80)}, which is not text. Write it in quotes", path)
        return str(key)

    def _scalar(self, event: Any, path: Key) -> Any:
        self._check_tag(event, path)
        text = str(event.value)
        if event.style is not None or event.tag is not None:
            return self._text(text, path)
        if text in CONSTANTS:
            return CONSTANTS[text]
        if NOT_FINITE.fullmatch(text):
            raise self._refused(f"is {text}, which is not finite. Write a number", path)
        if INTEGER.fullmatch(text) and len(text) <= 100:
            number = int(text.replace("_", ""), 0)
            if abs(number) <= LARGEST_INTEGER:
                return number
        if INTEGER.fullmatch(text):
            raise self._refused(f"is {shortened(text, 40)}, beyond {LARGEST_INTEGER}. Write a smaller number", path)
        if FLOAT.fullmatch(text):
            if math.isfinite(value := float(text.replace("_", ""))):
                return value
            raise self._refused(f"is {shortened(text, 40)}, which is not finite. Write a smaller number", path)
        return Unquoted(text) if AMBIGUOUS.fullmatch(text) else self._text(text, path)

    def _text(self, text: str, path: Key) -> str:
        """Text with UTF-16 escapes joined (as JSON writes them). Refuses characters that no output can hold."""
        if any("\ud800" <= character <= "\udfff" for character in text):
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        for character in text:
            if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
                raise self._refused(f"holds the control character U+{ord(character):04X}. Remove it", path)
        return text


class _Dumper(yaml.SafeDumper):
    """Writes the dictionaries of specs as others."""


_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration as YAML, its keys in their order."""
    return str(yaml.dump(config, Dumper=_Dumper, sort_keys=False))
