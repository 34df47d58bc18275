"""Reward functions of other people's trainers, called as TRL 1.16 calls them (`GRPOTrainer._calculate_rewards`)."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from transformers import TrainerState

from effopd.common.errors import UserError
from effopd.data.checked_numbers import NumberError, number, shown

LEFT_OUT = ("prompt", "completion", "completion_ids")  # columns of a data set that TRL gives to no reward function
TAKEN = ("prompts", "completions")  # names of arguments that no column can have


class RewardFunctions:
    """One reward function or several, whose weighted sum is the reward of a completion.

    `columns` go to the functions by name. Raises UserError if something here is no function, or the weights do not fit.
    """

    def __init__(self, functions: Any, weights: Sequence[float] | None, columns: Mapping[str, Sequence[Any]]) -> None:
        self.functions = list(functions) if isinstance(functions, list | tuple) else [functions]
        for function in self.functions:
            if not callable(function) or isinstance(function, torch.nn.Module):
                raise UserError(
                    f"the gate's reward is of type {type(function).__name__}. Give a function as TRL calls it, or a "
                    "list of them; one that asks a reward model can be written around it."
                )
        self.names = [_name_of(function) for function in self.functions]
        if not self.functions:
            raise UserError("the gate has 0 reward functions. Give it at least one.")
        self.weights = _weights(weights, len(self.functions))
        if taken := [name for name in columns if name in TAKEN]:
            raise UserError(f"the gate's column {taken[0]!r} has a name that TRL gives something else. Rename it.")
        self.columns = {name: column for name, column in columns.items() if name not in LEFT_OUT}

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        state: TrainerState,
    ) -> list[float]:
        """The reward of each completion; NaN if no function gave it one.

        Raises UserError, which names the function, if it gave another number of rewards than there are completions, or
        something that is no finite number.
        """

        def arguments() -> dict[str, Any]:  # of which a function may make what it likes
            return {
                **{name: list(column) for name, column in self.columns.items()},
                "prompts": copy.deepcopy(prompts),
                "completions": copy.deepcopy(completions),
                "completion_ids": copy.deepcopy(completion_ids),
                "trainer_state": state,
                "log_extra": _log_nothing,
                "log_metric": _log_nothing,
            }

        waiting = {place: function for place, function in enumerate(self.functions) if _is_async(function)}
        given = {
            place: function(**arguments()) for place, function in enumerate(self.functions) if place not in waiting
        }
        if waiting:

            async def together() -> list[Any]:
                return await asyncio.gather(*(function(**arguments()) for function in waiting.values()))

            results = asyncio.run_coroutine_threadsafe(together(), _event_loop()).result()
            given |= dict(zip(waiting, results, strict=True))
        checked = [_checked(given[place], name, len(completions)) for place, name in enumerate(self.names)]
        return [self._total(row) for row in zip(*checked, strict=True)]

    def _total(self, rewards: Sequence[float]) -> float:
        """The weighted sum of the rewards that there are (the others are NaN)."""
        there = [(w, r) for w, r in zip(self.weights, rewards, strict=True) if not math.isnan(r)]
        total = sum(w * r for w, r in there)
        if not math.isfinite(total):
            raise UserError(f"the weighted sum of the rewards of {', '.join(self.names)} is {total}.")
        return total if there else math.nan


def _weights(given: Any, count: int) -> list[float]:
    """The weights of so many functions as finite floats: each 1 if none are given. Raises UserError."""
    remedy = "Give a list with one finite number for each function."
    if given is None:
        return [1.0] * count
    try:
        found = list(given)
    except TypeError:  # a number, or a tensor or array of one
        found = None
    if found is None or isinstance(given, str | bytes | Mapping | Set):
        raise UserError(f"the gate's weights are {shown(given)}, not a list. {remedy}")
    if len(found) != count:
        raise UserError(f"the gate has {count} reward functions and {len(found)} weights, {shown(given)}. {remedy}")
    weights = [number(weight, f"the gate's weight {place}") for place, weight in enumerate(found)]
    for place, weight in enumerate(weights):
        if not math.isfinite(weight):
            raise UserError(f"the gate's weight {place} is {weight}. {remedy}")
    return weights


def _checked(given: Any, name: str, count: int) -> list[float]:
    """What a function gave, as one float for each completion; NaN for None."""
    try:
        rewards = [] if isinstance(given, str | bytes | Mapping | Set) else list(given)
    except TypeError:
        rewards = []
    if len(rewards) != count:
        what = f"{len(rewards)} rewards" if rewards else f"a value of type {type(given).__name__}"
        raise UserError(
            f"the reward function `{name}` returned {what} for {count} completions. It has to return a list with one "
            "number, or None, for each."
        )
    try:
        found = [
            math.nan if reward is None else number(reward, f"the reward of completion {row}")
            for row, reward in enumerate(rewards)
        ]
        for row, reward in enumerate(found):
            if math.isinf(reward):
                raise NumberError(f"the reward of completion {row} is {reward}")
    except NumberError as error:
        raise UserError(
            f"the reward function `{name}` returned something that is no finite number: {error}. It has to return one "
            "number, or None, for each completion."
        ) from None
    return found


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether a function is to be awaited: by itself, in a partial, or as the call of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(function.__call__)  # type: ignore[operator]


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _log_nothing(name: str, value: Any) -> None:
    """What reward functions log of candidates: their values do not belong among those of the training."""


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop for all reward functions, in a thread of its own: a notebook has one in the main thread already."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="effopd rewards", daemon=True).start()
    return loop
