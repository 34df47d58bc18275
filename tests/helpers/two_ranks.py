"""Run by test_two_ranks.py on two ranks: trains on this rank's share and writes what came out."""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from effopd.data import batching as passes
from effopd.models.models import save_tensors, weights_of, write_checkpoint
from effopd.training.trainer import Trainer
from objective_steps import step
from objectives import rollouts_of
from tiny_models import make_model
from trainer_data import SETTINGS, data, loss_and_metrics

torch.set_num_threads(1)
trainer = Trainer(make_model(0), SETTINGS)
rank, ranks = trainer.rank, trainer.ranks
assert ranks == 2
losses = []
for number in range(4):
    # an uneven share, in two micro-batches on one rank and one on the other
    share = [data(number)[:2], data(number)[2:5]] if rank == 0 else [data(number)[5:]]
    losses.append(trainer.step(share, loss_and_metrics, 1e-3)[0]["loss"])
assert trainer.sum_over_ranks(rank + 1.0) == 3.0
state = trainer.optimizer_state()
save_tensors(
    Path(sys.argv[1]) / f"rank{rank}.safetensors", weights_of(trainer.model) | state.moments, {"losses": repr(losses)}
)
rollouts = rollouts_of(make_model(0))
passes.FEWEST_POSITIONS = 1  # each rank cuts its passes where its own lengths say
for objective in ("sampled", "exopd", "top_k", "full"):  # each rank works on its share of three fixed batches
    facts, weights = step(objective, rollouts, 4)
    if rank == 0:
        save_tensors(Path(sys.argv[1]) / f"{objective}.safetensors", weights, {"facts": repr(facts)})
write_checkpoint(make_model(rank), torch.float32, Path(sys.argv[1]) / f"checkpoint{rank}")  # what its vLLM reads
os._exit(0)
