"""Two DeepSpeed processes compute what one does."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from effopd.models.models import load_model, load_tensors, weights_of
from effopd.training.early_stopping import METRIC
from effopd.training.trainer import Trainer
from objective_steps import loss_and_gradients, step
from objectives import rollouts_of
from preloaded import run_ranks
from rl_setup import PARTED, FirstTokenTask, Setup
from tiny_models import make_family, make_model
from trainer_data import SETTINGS, data, loss_and_metrics


def run_on_two_ranks(script: str, folder: Path) -> None:
    run_ranks(Path(__file__).parents[1] / "helpers" / script, folder)


@pytest.mark.slow
def test_two_ranks_train_the_same_model_as_one(tmp_path):
    run_on_two_ranks("two_ranks.py", tmp_path)
    alone = Trainer(make_model(0), SETTINGS)
    losses = [alone.step([data(number)], loss_and_metrics, 1e-3)[0]["loss"] for number in range(4)]
    ranks = [load_tensors(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    for name, tensor in ranks[1].items():
        assert torch.equal(ranks[0][name], tensor), f"the ranks disagree about {name}"
    for name, tensor in (weights_of(alone.model) | alone.optimizer_state().moments).items():
        torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-4, atol=1e-6)
    with safe_open(tmp_path / "rank0.safetensors", framework="pt") as file:
        assert ast.literal_eval(file.metadata()["losses"]) == pytest.approx(losses, rel=1e-5)
    rollouts = rollouts_of(make_model(0))
    for objective in ("sampled", "exopd", "top_k", "full"):
        facts, weights = step(objective, rollouts, 4)
        together = load_tensors(tmp_path / f"{objective}.safetensors")
        for name, tensor in weights.items():
            torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-5)
        with safe_open(tmp_path / f"{objective}.safetensors", framework="pt") as file:
            assert ast.literal_eval(file.metadata()["facts"]) == pytest.approx(facts, rel=1e-4, abs=1e-7)
    for rank in range(2):  # each rank writes a checkpoint of its own, as each has an engine
        written = weights_of(load_model(tmp_path / f"checkpoint{rank}", torch.device("cpu")))
        assert all(torch.equal(written[name], tensor) for name, tensor in weights_of(make_model(rank)).items())


@pytest.mark.slow
def test_losses_in_chunks_go_through_every_zero_stage(tmp_path):
    """Two ranks with uneven shares of the tokens, tied and untied heads: the step of one process without chunks."""
    run_on_two_ranks("zero_stages.py", tmp_path)
    for family in ("qwen3", "gemma2"):
        student = make_family(family, 0)
        _, gradients, _ = loss_and_gradients(student, make_family(family, 1), "full", rollouts_of(student))
        for stage in range(4):
            weights = load_tensors(tmp_path / f"{family}-zero{stage}.safetensors")
            for name, before in weights_of(student).items():
                torch.testing.assert_close(
                    weights[name], before - gradients[name], rtol=1e-4, atol=1e-6, msg=f"{name}, {stage}"
                )


@pytest.mark.slow
def test_two_ranks_learn_by_reinforcement_what_one_does(tmp_path, tokenizer):
    """Each way of training, under several ZeRO stages; DAPO's groups are dropped alike on both ranks.

    A rank that has fewer passes keeps step, with PPO's value head, too.
    """
    run_on_two_ranks("rl_ranks.py", tmp_path)
    for way, stage in PARTED:
        alone = Setup(way, tokenizer)
        facts = [{METRIC: alone.accuracy()}, *(alone.step(number) for number in (1, 2))]
        compare_step(tmp_path / f"{way}-zero{stage}.safetensors", facts, alone.trainer.weights())
    for stage in (2, 3):
        alone = Setup("ppo", tokenizer, prompts_per_step=5)
        facts = [alone.step(number) for number in (1, 2)]
        compare_step(tmp_path / f"uneven-zero{stage}.safetensors", facts, alone.trainer.weights())
    settings = {"prompts_per_step": 2, "max_draws": 1, "minibatches": 1}
    few = Setup("dapo", tokenizer, task=FirstTokenTask(right="0"), **settings)
    facts = [few.step(number) for number in range(1, 5)]
    assert any(fact["trained_groups"] == 1 for fact in facts), "no rank was idle: the test proves nothing"
    compare_step(tmp_path / "few.safetensors", facts, few.trainer.weights())


def compare_step(path: Path, facts, weights) -> None:
    together = load_tensors(path)
    with safe_open(path, framework="pt") as file:
        for found, wanted in zip(ast.literal_eval(file.metadata()["facts"]), facts, strict=True):
            assert found == pytest.approx(wanted, rel=2e-2, abs=1e-3), path.name
    assert together.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-2, atol=1e-3, msg=f"{path.name}: {name}")
