"""Run by test_two_ranks.py on two ranks: reinforcement learning on this rank's share of the prompts."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from effopd.data import batching as passes
from effopd.models.models import save_tensors
from effopd.training.early_stopping import METRIC
from rl_setup import PARTED, FirstTokenTask, Setup

torch.set_num_threads(1)
tokenizer = FirstTokenTask().make_tokenizer()
for stage in (2, 3):  # three prompts for one rank, two for the other: four passes and three
    uneven = Setup("ppo", tokenizer, prompts_per_step=5, num_processes=2, zero_stage=stage, micro_batch=3)
    facts = [uneven.step(number) for number in (1, 2)]
    weights = uneven.trainer.weights()
    if uneven.trainer.first:
        save_tensors(Path(sys.argv[1]) / f"uneven-zero{stage}.safetensors", weights, {"facts": repr(facts)})
passes.FEWEST_POSITIONS = 1  # each rank cuts its passes where its own lengths say
for way, stage in PARTED:
    setup = Setup(way, tokenizer, num_processes=2, zero_stage=stage, micro_batch=3)
    facts = [{METRIC: setup.accuracy()}, *(setup.step(number) for number in (1, 2))]
    weights = setup.trainer.weights()
    if setup.trainer.first:
        save_tensors(Path(sys.argv[1]) / f"{way}-zero{stage}.safetensors", weights, {"facts": repr(facts)})
# one informative group for two ranks: one of them has nothing to train on
few = Setup(
    "dapo", tokenizer, task=FirstTokenTask(right="0"), prompts_per_step=2, max_draws=1, minibatches=1, num_processes=2
)
facts = [few.step(number) for number in range(1, 5)]
if few.trainer.first:
    save_tensors(Path(sys.argv[1]) / "few.safetensors", few.trainer.weights(), {"facts": repr(facts)})
os._exit(0)
