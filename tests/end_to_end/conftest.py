"""Finished runs of the tiny experiment, each made once and shared by the processes that run the tests."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from workflow_runs import Workflow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These tests first: they last longest, and what is short then fills the processes to the end."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Callable[[str, Callable[[Path], Workflow]], Workflow]:
    """A function: the workflow that `make` sets up in a folder, run there once without disturbance; by its name.

    Not to be changed: copy it.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def run(name: str, make: Callable[[Path], Workflow]) -> Workflow:
        folder, done = shared / f"finished-{name}", shared / f"finished-{name}.done"
        with (shared / f"finished-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                workflow = make(folder)
                workflow.run()
                done.write_text(yaml.safe_dump(workflow.config))
        return Workflow(folder, yaml.safe_load(done.read_text()))

    return run


@pytest.fixture(scope="session")
def undisturbed(finished) -> Workflow:
    """The finished tiny experiment."""
    return finished("tiny", Workflow)


@pytest.fixture
def copy(undisturbed, tmp_path) -> Workflow:
    """A copy of the finished tiny experiment, Snakemake's records included."""
    return undisturbed.copy(tmp_path)
