"""A run with LoRA through the real workflow: jumps, in one job a segment or in many, to the same bits."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from every_step import EVERY_STEP
from workflow_runs import BEFORE_STUDENTS, Workflow

pytestmark = pytest.mark.slow

RANK, ALPHA = 2, 8
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def run(undisturbed: Workflow, folder: Path, mode: str, shards: int) -> Workflow:
    workflow = undisturbed.copy(folder, *BEFORE_STUDENTS)
    workflow.config |= {"seeds": [0], "execution": {"mode": mode, "shards": shards}}
    always = {"coefficients": [2], "gate": {"metric": "always"}}
    training = {"lora": {"rank": RANK, "alpha": ALPHA}, "lr": 1.0e-3}
    workflow.config["runs"] = {
        "lora": {"training": training, "extrapolation": always},
        "every": {"training": {**training, "steps": 2}, **EVERY_STEP},
    }
    workflow.config["training"]["batch_size"] = 3
    workflow.config["evaluation"]["baseline"] = "lora"
    workflow.run("--until", "collect_run")
    return workflow


def products(path: Path) -> dict[str, torch.Tensor]:
    """(alpha / rank) B A by parameter, in float64, from an optimizer's file."""
    factors = {name: tensor.double() for name, tensor in load_file(path).items() if name.startswith("factors.")}
    layers = {name.removeprefix("factors.").removesuffix(".lora_A") for name in factors if name.endswith(".lora_A")}
    return {
        f"{layer}.weight": ALPHA / RANK * factors[f"factors.{layer}.lora_B"] @ factors[f"factors.{layer}.lora_A"]
        for layer in layers
    }


def test_lora_jumps_and_its_staged_artifacts_are_bitwise_the_colocated_ones(undisturbed, tmp_path):
    """Staged, each step is a job that goes on from a state on disk; with a jump behind it at every trigger."""
    colocated = run(undisturbed, tmp_path / "colocated", "colocated", 1)
    staged = run(undisturbed, tmp_path / "staged", "staged", 3)
    ours, theirs = staged.contents(), colocated.contents()
    compared = [name for name in theirs if "/runs/" in name and not name.endswith("cost.parquet")]
    differing = [name for name in compared if ours[name] != theirs[name] and "/candidates.json" not in name]
    assert not differing
    assert len(compared) > 30

    steps = pd.read_parquet(colocated.path("runs/every/seed0/metrics.parquet"))
    assert (steps["coefficient"] != 0).any(), "no jump within a segment"

    folder, base = colocated.path("runs/lora/seed0"), load_file(colocated.path("models/base/model.safetensors"))
    before, product_before = base, dict.fromkeys(base, 0.0)
    for step in (1, 2, 4):
        raw = load_file(folder / f"state/{step}/weights.safetensors")
        accepted = load_file(folder / f"extrapolation/{step}/weights.safetensors")
        product = products(folder / f"state/{step}/optimizer.safetensors")
        assert product.keys() == {name for name in raw if name.split(".")[-2] in PROJECTIONS}
        for name in raw.keys() - product.keys():
            assert torch.equal(accepted[name], base[name]), f"{name} has no adapter"
        for name, now in product.items():  # training moves W by what B A moves by, and a jump leaves B A alone
            moved = now - product_before[name]
            assert moved.abs().max() > 1e-4
            torch.testing.assert_close(raw[name].double() - before[name], moved, rtol=0, atol=1e-6)
            torch.testing.assert_close(accepted[name].double() - before[name], 3 * moved, rtol=0, atol=2e-6)
        before, product_before = accepted, product
