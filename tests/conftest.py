"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.tasks.base import Task, build_task
from tiny_models import TASK_SECTION, make_model


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def task() -> Task:
    return build_task(TASK_SECTION)


@pytest.fixture
def tokenizer(task: Task) -> PreTrainedTokenizerFast:
    return task.make_tokenizer()


@pytest.fixture
def model() -> PreTrainedModel:
    return make_model(0)


@pytest.fixture
def other_model() -> PreTrainedModel:
    return make_model(1)


# Modules are compiled once, not by each of the hundreds of interpreters and forks that the tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, tests that share a fixture of their module run in one, so that it is made once."""
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
            continue
        definitions = [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]
        shared = {definition.argname for definition in definitions if definition.scope == "module"}
        if shared:
            chosen = item.callspec.indices.items() if hasattr(item, "callspec") else ()
            places = [f"{name}{place}" for name, place in chosen if name in shared]
            item.add_marker(pytest.mark.xdist_group("-".join([item.path.stem, *places])))
