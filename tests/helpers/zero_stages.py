"""Run by test_two_ranks.py on two ranks: a step of plain gradient descent in each ZeRO stage.

Each rank has its share of the rollouts, and every batch is cut into chunks. Written are the weights after the step.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from effopd.distillation.objective import ScoredBatch, distillation_loss
from effopd.losses.chunked import chunked_loss
from effopd.models import lm_head as logits
from effopd.models.models import save_tensors
from effopd.training.deepspeed_compat import import_deepspeed
from objectives import head_of, rollouts_of, scores_of, training_of
from tiny_models import make_family

torch.set_num_threads(1)
deepspeed = import_deepspeed(on_cpu=True)
deepspeed.init_distributed("gloo")
rank = torch.distributed.get_rank()
for family in ("qwen3", "gemma2"):
    student, teacher = make_family(family, 0), make_family(family, 1)
    rollouts, training = rollouts_of(student), training_of("full")
    scores = scores_of(teacher, rollouts, training)
    mine = range(0, 3) if rank == 0 else range(3, 10)
    micro = ScoredBatch.from_rollouts(
        rollouts.select(mine), scores.select(mine), 0, student.device, head_of(teacher, training)
    )
    loss_of = partial(distillation_loss, training, rollouts.completion_tokens, micro)
    logits.LOGITS_AT_ONCE = 7 * 24
    for stage in range(4):
        model = make_family(family, 0)
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            config={
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
            },
        )
        loss, _ = chunked_loss(engine, micro.batch, loss_of)
        engine.backward(loss * 2)  # DeepSpeed averages over the ranks
        engine.step()
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
            weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        if rank == 0:
            save_tensors(Path(sys.argv[1]) / f"{family}-zero{stage}.safetensors", weights)
    logits.LOGITS_AT_ONCE = 2**24
torch.distributed.barrier()
os._exit(0)
