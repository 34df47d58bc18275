"""Run by test_trl.py under torch.distributed.run: a Trainer with DeepSpeed ZeRO in bf16 and EffOPDCallback."""

import os
import sys
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent))
from effopd.integrations.gates import ReverseKLGate
from effopd.integrations.master_weights import MasterWeights
from effopd.integrations.transformers import EffOPDCallback
from effopd.models.models import save_tensors
from effopd.tasks.base import build_task
from effopd.training.deepspeed_compat import import_deepspeed
from tiny_models import TASK_SECTION, make_model

torch.set_num_threads(1)
import_deepspeed(on_cpu=True)
out, stage = Path(sys.argv[1]), int(sys.argv[2])


class Look(TrainerCallback):
    """Writes the float32 masters before or after the callback at step 2, and the working copies."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_train_begin(self, args, state, control, **kwargs):
        if self.name == "before":
            save("anchor", MasterWeights(kwargs["model"]).read())

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != 2:
            return
        save(self.name, MasterWeights(kwargs["model"]).read())
        if self.name == "masters":
            import deepspeed

            model = kwargs["model"]
            with deepspeed.zero.GatheredParameters(list(model.parameters())):
                save("working", {name: p.detach().float().clone() for name, p in model.named_parameters()})


class LookAfter(Look):
    """The Trainer takes callbacks of one class once."""


def save(name, weights):
    if dist.get_rank() == 0:
        save_tensors(out / f"{name}.safetensors", weights)


tokenizer = build_task(TASK_SECTION).make_tokenizer()
model = make_model(0, len(tokenizer))
rows = [{"input_ids": [5, 8, 3, 9, 4, 7], "labels": [5, 8, 3, 9, 4, 7]} for _ in range(16)]
gate = ReverseKLGate(
    ["1+2+3=", "2+2+2=", "4+1+3="], make_model(1, len(tokenizer)), tokenizer, max_new_tokens=4, examples=3
)


def both(model, step, coefficient):
    gate(model, step, coefficient)  # generates and scores with partitioned parameters
    return 1.0 if coefficient <= 2 else 0.0


callback = EffOPDCallback(both, triggers=[2], parameters=r"\.mlp\.")
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=str(out / "trainer"),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        deepspeed={
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_optimization": {"stage": stage},
            "bf16": {"enabled": True},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
            "zero_force_ds_cpu_optimizer": False,
        },
    ),
    train_dataset=Dataset.from_list(rows),
    callbacks=[Look("before"), callback, LookAfter("masters")],
)
trainer.train()
dist.barrier()
os._exit(0)
