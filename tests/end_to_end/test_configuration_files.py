"""Configuration files as Snakemake gets them: one strict reader decides, and says what is wrong in one line."""

import importlib.util

import pytest
import torch

from workflow_runs import Workflow

pytestmark = pytest.mark.slow


@pytest.fixture
def workflow(tmp_path):
    return Workflow(tmp_path, options=("--cores", "1"))


def errors(output):
    """The lines of a run that failed, without the name of the profile and the clock."""
    lines = [line for line in output.splitlines() if not line.startswith("Using workflow specific profile")]
    return [line.split("] ", 1)[1] for line in lines if " jobs: " not in line]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"training: {max_new_tokens: 010}", "overlay.yaml, line 1: `training.max_new_tokens` is 010, which readers of YAML"),
        (b"seeds: [0]\nseeds: [1]", "overlay.yaml, line 2: `seeds` is written twice, first in line 1."),
        (b"a: 1\nb: \xe9", "overlay.yaml, line 2: the byte 0xe9 is not UTF-8. Save the file as UTF-8."),
        (b"seeds: [", "overlay.yaml, line 1: this is not YAML"),
        (b"- training", "overlay.yaml holds a list. Write sections"),
        (b"[" * 3000, "overlay.yaml, line 1: sections are nested more than 50 deep."),
        (b"a: !!python/object/apply:os.system [ls]", "overlay.yaml, line 1: `a` has the tag `!!python/object/apply:os.system`"),
    ],
)  # fmt: skip
def test_a_wrong_overlay_ends_in_one_line(workflow, tmp_path, content, words):
    (tmp_path / "overlay.yaml").write_bytes(content)
    (line,) = errors(workflow.run("--dry-run", "--configfile", "overlay.yaml", status=1))
    assert words in line


def test_the_workflows_own_file_is_read_as_strictly(workflow, tmp_path):
    command = workflow.command()
    (tmp_path / "config/config.yaml").write_bytes(b"seeds: [0]\nseeds: [1]")
    workflow.command = lambda *arguments: [*command, *arguments]
    (line,) = errors(workflow.run("--dry-run", status=1))
    assert line.startswith("config/config.yaml, line 2: `seeds` is written twice, first in line 1.")


def test_assignments_are_read_as_strictly(workflow):
    (line,) = errors(workflow.run("--dry-run", "--config", "seeds=[0, 0]", status=1))
    assert line == "--config seeds: `seeds` is [0, 0]; its items must differ."


def test_what_is_clear_plans_the_same(workflow, tmp_path):
    """An overlay of nothing, whole floats and assignments, over the same configuration."""
    planned = workflow.planned()
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "floats.yaml").write_bytes(b"\xef\xbb\xbfseeds: [0.0]\nevaluation: {samples: 1e0}")
    (tmp_path / "whole.yaml").write_bytes(b"seeds: [0]\nevaluation: {samples: 1}")
    assert workflow.planned("--configfile", "empty.yaml") == planned
    floats = workflow.planned("--configfile", "empty.yaml", "floats.yaml")
    assert floats == workflow.planned("--configfile", "whole.yaml")
    assert floats == workflow.planned("--config", "seeds=[0]", "evaluation={'samples': 1}")


@pytest.mark.parametrize(
    ("key", "value", "words", "there"),
    [
        ("runtime", "{device: cuda}", "`runtime.device` is 'cuda', and this machine has no usable GPU", torch.cuda.is_available),
        ("evaluation", "{engine: vllm}", "an `engine` is 'vllm', which is not installed here", lambda: importlib.util.find_spec("vllm")),
    ],
)  # fmt: skip
def test_what_this_machine_lacks_is_missed_before_any_job(workflow, tmp_path, key, value, words, there):
    if there():
        pytest.skip("this machine has it")
    (line,) = errors(workflow.run("--config", f"{key}={value}", status=1))
    assert words in line
    assert not (tmp_path / "results").exists()
