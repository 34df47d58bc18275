"""Configurations of tests."""

from __future__ import annotations

import copy
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]

GOOD = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def edited(path: str, value):
    config = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = config
    for part in parents:
        place = place.setdefault(part, {})
    place[last] = value
    return config


LONGER = {"min_terms": 7, "max_terms": 8, "splits": {"test": 16}}


def with_other(name="longer", samples=None, **task):
    """The embedded experiment, evaluated on another task too."""
    settings = {"task": task or LONGER, **({} if samples is None else {"samples": samples})}
    return edited("evaluation.tasks", {name: settings})
