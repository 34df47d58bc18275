"""Two DeepSpeed processes compute what one does."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from test_trainer import SETTINGS, data, loss_of
from tiny_models import make_model

from effopd.models import load_tensors, weights_of
from effopd.trainer import Trainer


@pytest.mark.slow
def test_two_ranks_train_the_same_model_as_one(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).with_name("two_ranks.py")
    subprocess.run([*launch, str(script), str(tmp_path)], check=True, timeout=120)
    alone = Trainer(make_model(0), SETTINGS)
    losses = [alone.step([data(step)], loss_of, 1e-3)["loss"] for step in range(4)]
    ranks = [load_tensors(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    for name, tensor in ranks[0].items():
        assert torch.equal(ranks[1][name], tensor), f"the ranks disagree about {name}"
    for name, tensor in (weights_of(alone.model) | alone.optimizer_state().moments).items():
        torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-4, atol=1e-6)
    with safe_open(tmp_path / "rank0.safetensors", framework="pt") as file:
        assert ast.literal_eval(file.metadata()["losses"]) == pytest.approx(losses, rel=1e-5)
