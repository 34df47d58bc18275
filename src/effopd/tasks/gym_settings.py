"""What the section of a `reasoning_gym` task says: its data sets by name, and how many problems each gives.

Light to import: reasoning-gym itself is only asked where names and parameters are checked.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

from effopd.common.errors import ConfigError
from effopd.common.formatting import one_line, shortened

MISSING = (
    "`task.name` is reasoning_gym, which needs the package reasoning-gym, and it is not installed here. It comes with "
    "the extra `reasoning_gym`: pip install 'effopd[reasoning_gym]'"
)
OWN_PARAMETERS = {"seed": "`{key}.seed` seeds all of them", "size": "`{key}.splits` says how many problems there are"}


def check_installed() -> None:
    """Raises ConfigError, which names the extra, if reasoning-gym is not installed."""
    if find_spec("reasoning_gym") is None:
        raise ConfigError(MISSING)


def label_of(entry: Mapping[str, Any]) -> str:
    """What problems of an entry of `datasets` have in the column `source`."""
    return str(entry.get("label", entry["name"]))


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """A number of problems as whole numbers in proportion to the weights, by largest remainder; first come, first."""
    exact = [total * Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    whole = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda place: (whole[place] - exact[place], place))
    for place in by_remainder[: total - sum(whole)]:
        whole[place] += 1
    return whole


def gym_problems(task: Mapping[str, Any], key: str) -> Iterator[str]:
    """What the section `key` of a task gets wrong: labels and, by the installed package, names and parameters."""
    entries = task["datasets"]
    labels = [label_of(entry) for entry in entries]
    settings = [(entry["name"], entry["parameters"]) for entry in entries]
    for place, label in enumerate(labels):
        if label in labels[:place]:
            yield (
                f"`{key}.datasets.{place}` is called {label!r} as `{key}.datasets.{labels.index(label)}` is. Give it a "
                "`label` of its own."
            )
        elif settings[place] in settings[:place]:
            first = settings.index(settings[place])
            yield (
                f"`{key}.datasets.{place}` has the problems of `{key}.datasets.{first}`: name and parameters are the "
                "same. Write it once, with the sum of the weights."
            )
        elif label == "all" and len(entries) > 1:
            yield (
                f"`{key}.datasets.{place}` has the label `all`, which tables give to all sources together. Give it "
                "another `label`."
            )
    if find_spec("reasoning_gym") is None:
        yield MISSING.replace("`task.", f"`{key}.")
        return
    for place, entry in enumerate(entries):
        if (found := _entry_problem(entry, f"{key}.datasets.{place}", key)) is not None:
            yield found


def _entry_problem(entry: Mapping[str, Any], own: str, key: str) -> str | None:
    """What reasoning-gym does not take of an entry."""
    from reasoning_gym.factory import DATASETS

    name, parameters = entry["name"], entry["parameters"]
    if name == "composite":
        return f"`{own}.name` is 'composite', which mixes others. List those in `{key}.datasets`, with weights."
    if name not in DATASETS:
        return f"`{own}.name` is {name!r}, which reasoning-gym does not have. {_nearest(name, DATASETS)}"
    described = DATASETS[name][1]
    known = [field.name for field in fields(described) if field.name not in OWN_PARAMETERS]
    for parameter, value in parameters.items():
        if parameter in OWN_PARAMETERS:
            return f"`{own}.parameters.{parameter}`: {OWN_PARAMETERS[parameter].format(key=key)}. Leave it out."
        if parameter not in known:
            return (
                f"`{own}.parameters.{parameter}` is {shortened(repr(value), 80)}, and {name} has no such parameter. "
                f"{_nearest(parameter, known)}"
            )
    try:
        described(**parameters).validate()
    except Exception as error:  # by assertion, of a type that does not fit, or as it likes
        reason = one_line(f"{type(error).__name__}: {error}", 200)
        return f"`{own}.parameters` is {shortened(repr(parameters), 200)}, which {name} refuses ({reason}). Correct it."
    return None


def _nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    if close := difflib.get_close_matches(name, known, n=3):
        return f"Did you mean {' or '.join(f'`{one}`' for one in close)}?"
    return f"Known: {', '.join(sorted(known))}." if known else "It has none."
