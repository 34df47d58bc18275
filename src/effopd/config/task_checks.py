"""What a valid task section may still get wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from effopd.tasks.arithmetic import SPLIT_SHARES
from effopd.tasks.gym_settings import gym_problems
from effopd.tasks.sources import is_local, source_name


def task_problems(task: Mapping[str, Any], key: str) -> Iterator[str]:
    """What the section `key` of a task gets wrong: `task`, or another one that is only evaluated on."""
    if task["name"] == "arithmetic":
        if task["max_terms"] < task["min_terms"]:
            least, most = task["min_terms"], task["max_terms"]
            yield f"`{key}.max_terms` is {most}, less than `{key}.min_terms` ({least}). Raise it."
        else:
            yield from _held_out_problems(task, key)
        return
    if task["name"] == "reasoning_gym":
        yield from gym_problems(task, key)
        return
    trained_on = key == "task"
    for name in ("train", "validation") if trained_on else ():
        if name not in task["splits"]:
            yield f"`{key}.splits.{name}` is missing. Add it."
    sourced = {name: split for name, split in task["splits"].items() if isinstance(split, Mapping)}
    for name, split in sourced.items():
        place = f"{key}.splits.{name}"
        if "share" in split and not trained_on:
            yield f"`{place}.share`: nothing is trained on this task that a share could be of. Give `sources`."
        if ("sources" in split) == ("share" in split):
            yield f"`{place}` needs either `sources` or a `share` of the training problems. Give one of them."
        if name == "train" and "share" in split:
            yield f"`{place}.share`: training is what shares are taken from. Give `sources`."
        for number, source in enumerate(split.get("sources", ())):
            own = f"{place}.sources.{number}"
            for column, condition in source["where"].items():
                if condition.get("min", -math.inf) > condition.get("max", math.inf):
                    yield f"`{own}.where.{column}` is {condition}, which no row can meet. Swap `min` and `max`."
            if ("dataset" in source) == ("files" in source):
                yield f"`{own}` needs either a `dataset` or `files`. Give one of them."
            elif "revision" in source and ("files" in source or is_local(source["dataset"])):
                yield f"`{own}.revision`: local files have none. Remove it."
            elif "dataset" in source and not is_local(source["dataset"]) and "revision" not in source:
                yield (
                    f"`{own}.revision` is missing: the data set {source['dataset']} of the hub can change. Add the "
                    "commit, or write a local folder with ./ in front."
                )
            elif len(split["sources"]) > 1 and source_name(source) == "all":
                yield f"`{own}` has the name `all`, which tables give to all sources together. Give it another `name`."
    shares = sum(split.get("share", 0) for split in sourced.values())
    if shares >= 1:
        yield f"`{key}.splits`: the shares sum to {shares:g}, which leaves training nothing. Lower them."


def _held_out_problems(task: Mapping[str, Any], key: str) -> Iterator[str]:
    """Held-out problems are distinct, and small numbers of small terms make few."""
    lengths = range(task["min_terms"], task["max_terms"] + 1)
    distinct = sum((task["largest_term"] + 1) ** length for length in lengths)
    for split in ("validation", "test") if key == "task" else ("test",):
        most = int(0.8 * distinct * SPLIT_SHARES[split] / 100)  # leaves room for chance
        if (size := task["splits"][split]) > most:
            yield (
                f"`{key}.splits.{split}` is {size}, and only about {most} distinct problems of these terms belong to "
                f"it. Lower it, or raise `{key}.max_terms` or `{key}.largest_term`."
            )


def split_rows(task: Mapping[str, Any], split: str) -> tuple[str, int | None]:
    """The key that limits a split's problems, and the limit; None if only the data knows."""
    settings = task["splits"][split]
    if not isinstance(settings, Mapping):
        return f"task.splits.{split}", settings
    return f"task.splits.{split}.rows", settings.get("rows")
