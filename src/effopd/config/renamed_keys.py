"""Keys of the configuration that had another name in version 0.1, which they keep for one release."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from effopd.common.errors import ConfigError

Key = tuple[str, ...]


def _as_it_is(value: Any) -> Any:
    return value


def takes_ties(rule: Any) -> Any:
    """The meaning of `accept`; anything else as it is, for the schema to refuse."""
    return {">=": True, ">": False}.get(rule, rule) if isinstance(rule, str) else rule


@dataclass(frozen=True)
class Renamed:
    """A key that has a new name beside its old one's place."""

    place: re.Pattern[str]  # of the old key, dotted
    name: str
    translated: Callable[[Any], Any] = _as_it_is


_RUN = r"(runs\.[^.]+\.)?"
RENAMED = [
    Renamed(re.compile(rf"{_RUN}training\.importance_limit"), "importance_ratio_cap"),
    Renamed(re.compile(rf"{_RUN}training\.kept_steps"), "checkpoint_steps"),
    Renamed(re.compile(rf"({_RUN}training|models\.[^.]+)\.ranks"), "num_processes"),
    Renamed(re.compile(rf"{_RUN}training\.objective\.lambda"), "reward_scale"),
    Renamed(re.compile(rf"({_RUN}extrapolation|predictions\.[^.]+)\.accept"), "accept_ties", takes_ties),
]


def with_new_names(values: Mapping[str, Any], place: Key = ()) -> tuple[dict[str, Any], dict[Key, Key]]:
    """A configuration, or the section of it at `place`, with new names for old ones, and the renamed keys.

    Raises ConfigError if a section has a key under both names.
    """
    found: dict[str, Any] = {}
    renamed: dict[Key, Key] = {}
    for key, value in values.items():
        old = (*place, str(key))
        rule = next((rule for rule in RENAMED if rule.place.fullmatch(".".join(old))), None)
        if rule is not None:
            if rule.name in values:
                raise ConfigError(
                    f"config: `{'.'.join(old)}` is the old name of `{rule.name}`, and both are written. Leave "
                    f"`{key}` out."
                )
            renamed[old] = (*place, rule.name)
            found[rule.name] = rule.translated(value)
        elif isinstance(value, Mapping):
            found[key], below = with_new_names(value, old)
            renamed |= below
        else:
            found[key] = value
    return found, renamed


def lines_about(renamed: Mapping[Key, Key], places: Mapping[Key, str]) -> Iterator[str]:
    """What to tell who wrote the old names; `places` says where each key is written."""
    for old, new in renamed.items():
        where = f"{places[old]}: " if old in places else ""
        yield f"warning: {where}`{'.'.join(old)}` is called `{new[-1]}` now. The old name works for one more release."
