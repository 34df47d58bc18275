"""A pair that must not be trained stops before training, with a line for each reason."""

import re

import pytest

from workflow_runs import Workflow

pytestmark = pytest.mark.slow


def test_a_bad_pair_stops_before_training_and_says_why(tmp_path):
    workflow = Workflow(tmp_path)
    workflow.config["models"].pop("teacher")
    workflow.config["runs"] = {"opd": {"extrapolation": {"triggers": "none"}}}
    workflow.config["training"] |= {"teacher": "base", "max_new_tokens": 200, "steps": 1}
    workflow.config["seeds"] = [0]
    output = workflow.run(status=1)
    errors = [line.split("error: ", 1)[1] for line in output.splitlines() if re.search(r"preflight .*error: ", line)]
    assert [error.split(":")[0] for error in errors] == ["lengths", "start_kl"]
    assert "Lower `training.max_new_tokens`" in errors[0]
    assert "they are the same model" in errors[1]
    assert not workflow.path("runs").exists()
    assert not list(workflow.folder.glob("results/preflight/[!.]*-????????.json"))
    assert list(workflow.folder.glob("results/preflight/*.checks.json"))
    workflow.config["preflight"] = {"accept": ["start_kl"]}
    workflow.config["training"]["max_new_tokens"] = 10
    workflow.run()
    logs = [path.read_text() for path in workflow.folder.glob("logs/preflight/*.log")]
    assert any("1 accepted (start_kl)" in log for log in logs)
    report = workflow.path("report.html").read_text()
    assert "Checked before training" in report
    assert '<table class="words">' in report
    assert "<td>start kl</td><td>accepted</td>" in report
