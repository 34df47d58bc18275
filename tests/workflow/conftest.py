"""Finished runs of the tiny experiment."""

import subprocess

import pytest
from workflow_runs import Workflow


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Workflow:
    """The tiny experiment, run once without disturbance. Not to be changed: copy it."""
    workflow = Workflow(tmp_path_factory.mktemp("undisturbed"))
    workflow.run()
    return workflow


@pytest.fixture
def copy(undisturbed, tmp_path) -> Workflow:
    """A copy of the finished tiny experiment, Snakemake's records included."""
    subprocess.run(["cp", "-a", f"{undisturbed.folder}/.", str(tmp_path)], check=True)
    return Workflow(tmp_path)
