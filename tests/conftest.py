"""Settings and fixtures of all tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

import pytest
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
