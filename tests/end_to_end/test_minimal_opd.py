"""The example that a student reads makes the workflow's bits: weights, metrics, decisions and evaluations."""

import importlib.util
import json
import subprocess
import sys

import pandas as pd
import pytest
import torch

from effopd.models.models import load_tensors
from workflow_runs import ROOT

pytestmark = pytest.mark.slow
EXAMPLE = ROOT / "examples/minimal_opd.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("minimal_opd", EXAMPLE)
    module = sys.modules["minimal_opd"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["minimal_opd"]


@pytest.mark.parametrize(("name", "extrapolates"), [("opd", False), ("effopd", True)])
def test_it_makes_the_bits_of_a_run(undisturbed, example, name, extrapolates):
    run = example.Run(undisturbed.path("."), name, seed=1)
    folder, decisions = undisturbed.path(f"runs/{name}/seed1"), {}
    expected = pd.read_parquet(folder / "metrics.parquet").drop(columns=["run", "seed"]).to_dict("records")
    for row, metrics in zip(expected, example.distill(run, 4), strict=True):
        step = metrics["step"]
        decision, last = folder / f"extrapolation/{step}/decision.json", folder / f"state/{step}"
        if extrapolates and step in run.triggers:
            decisions[step] = metrics.pop("coefficient")
            assert decisions[step] == json.loads(decision.read_text())["result"]["coefficient"]
            last = decision.parent if decisions[step] else last
        assert metrics == row
        if (last / "weights.safetensors").is_file():
            weights = run.trainer.weights()
            assert all(torch.equal(weights[n], t) for n, t in load_tensors(last / "weights.safetensors").items())
    assert list(decisions) == ([1, 2, 4] if extrapolates else [])
    assert any(decisions.values()) == extrapolates, "no candidate was accepted: the test proves nothing"
    evaluated = json.loads(undisturbed.path(f"evaluation/{name}/seed1/4.json").read_text())["result"]
    answers = example.evaluate(run)
    assert (answers.accuracy, answers.reverse_kl) == (evaluated["accuracy"], evaluated["reverse_kl"])


def test_its_command_line_writes_a_model_and_refuses_what_it_leaves_out(undisturbed, tmp_path):
    def command(*arguments):
        words = [sys.executable, str(EXAMPLE), str(undisturbed.path(".")), *arguments]
        return subprocess.run(words, capture_output=True, text=True)

    done = command("--run", "opd", "--steps", "1", "--out", str(tmp_path / "trained"))
    assert done.returncode == 0, done.stderr
    assert "step 1, reverse_kl" in done.stdout
    kept = load_tensors(undisturbed.path("runs/opd/seed0/state/1/weights.safetensors"))
    found = load_tensors(tmp_path / "trained/model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in kept.items())
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("my own")
    (tmp_path / "link").symlink_to(mine)
    for arguments, words in (
        (["--run", "line"], "`line` is a run that this example leaves out"),
        (["--run", "nope"], "has no run `nope`. Name one of: "),
        (["--run", "opd", "--steps", "0"], "0 is not in the range"),
        *((["--run", "opd", "--out", str(out)], words) for out, words in (
            (mine, "exists already"), (tmp_path / "link", "exists already"), (mine / "config.json", "exists already"),
            (mine / "config.json/below", "is no folder"), ("", "is no name for a new folder"),
        )),
    ):  # fmt: skip
        refused = command(*arguments)
        assert refused.returncode in (1, 2), refused.stdout
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
        assert not refused.stdout, "it had begun"
    assert [path.name for path in mine.iterdir()] == ["config.json"]
    assert (mine / "config.json").read_text() == "my own"


def test_it_is_read_in_one_sitting():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if "effopd.stages" in line]
