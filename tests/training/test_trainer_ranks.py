"""Two DeepSpeed processes compute what one does, however they share the model out."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from effopd.models.models import load_tensors, weights_of
from preloaded import run_ranks
from trainer_data import SETTINGS, data, loss_and_metrics
from trainer_ranks import WAYS, make_trainer

pytestmark = pytest.mark.slow


TWICE = ("zero2then3", "bf16zero1then3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two ranks made of four steps, in every way; and what a second start made of some."""
    folders = [tmp_path_factory.mktemp(name) for name in ("ranks", "again")]
    for folder, ways in zip(folders, (WAYS, TWICE), strict=True):
        run_ranks(Path(__file__).parents[1] / "helpers/trainer_ranks.py", folder, *ways)
    return folders


def results(folder, way, rank=0):
    return load_tensors(folder / f"{way}.rank{rank}.safetensors")


@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_train_the_same_model_as_one(trained, way):
    alone = make_trainer(way, 0, SETTINGS)
    losses = [alone.step([data(step)], loss_and_metrics, 1e-3)[0]["loss"] for step in range(4)]
    found = results(trained[0], way)
    exact = not way.startswith("bf16")
    for name, tensor in (weights_of(alone.model) | alone.optimizer_state().moments).items():
        if exact:
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
        elif not name.startswith("exp_avg"):  # a gradient near zero may change its sign, and Adam's step with it
            assert (found[name] - tensor).abs().median() < 2e-4
            assert not torch.equal(found[name], found[name].bfloat16().float())
    with safe_open(trained[0] / f"{way}.rank0.safetensors", framework="pt") as file:
        assert ast.literal_eval(file.metadata()["losses"]) == pytest.approx(losses, rel=1e-5 if exact else 1e-2)


@pytest.mark.parametrize("way", TWICE)
def test_what_two_ranks_train_is_reproducible_and_whole_where_engines_need_it(trained, way):
    found, again, other = results(trained[0], way), results(trained[1], way), results(trained[0], way, rank=1)
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in found)
    policy_model = [name for name in found if name.startswith("policy_model.")]
    assert policy_model
    assert sorted(other) == sorted(policy_model), "the second rank keeps nothing but its engine's copy"
    for name in policy_model:
        assert torch.equal(found[name], other[name])
        assert torch.equal(found[name], found[name.removeprefix("policy_model.")].to(found[name].dtype))
