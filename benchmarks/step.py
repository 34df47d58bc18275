"""A step of on-policy distillation, and its rollouts, against TRL's DistillationTrainer and `model.generate`.

    python benchmarks/step.py [--steps 8] [--repeats 5] [--threads 1] [--tokens 24] [--micro 128]

The embedded experiment's student (4 layers, 64 wide) and teacher shapes, random weights, 128 prompts a step, up to 24
new tokens, float32, on the CPU. With a higher limit completions end by themselves, most of them early; with a smaller
micro-batch the update is made in several passes, as where memory is short. Both sides have the same models, prompts,
batch, lengths, micro-batch (ours is the update's alone), optimizer and learning rate, in one process, in turn. Printed
are seconds and CPU seconds a step (which other processes disturb less), their ratios, and the exact reverse KL that
each side ends with on the same fresh rollouts: neither is faster by learning less.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from effopd.workflow.fork_server import MALLOC

if __name__ == "__main__" and any(name not in os.environ for name in MALLOC):  # both sides as jobs of the workflow run
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})

import numpy as np
import torch
from datasets import Dataset
from shared import random_student
from transformers import PreTrainedModel, TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from effopd.common.randomness import seed_of
from effopd.distillation.step import generate_rollouts, update_policy
from effopd.engines.base import Sampling
from effopd.engines.transformers_engine import TransformersEngine
from effopd.models.models import special_ids
from effopd.tasks.base import build_task
from effopd.teachers.scoring import LocalTeacher, measure_reverse_kl
from effopd.training.trainer import Trainer, TrainerSettings
from effopd.workflow.job_specs import Plan, training_settings

BATCH, LR = 128, 1e-4
CONFIG = {
    "models": {"base": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "base"}},
    "training": {
        "prompts_per_step": BATCH,
        "batch_size": BATCH,
        "lr": LR,
        "weight_decay": 0,
    },
    "runs": {"opd": {"extrapolation": {"triggers": "none"}}},
    "task": {"splits": {"train": 4096, "validation": 256, "test": 8}, "corpus": {"size": 8}},
}
Timing = tuple[float, float]  # seconds, CPU seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="Optimizer steps of each run (default: 8).")
    parser.add_argument("--repeats", type=int, default=5, help="Runs of each side (default: 5).")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=24, help="Longest completion (default: 24).")
    parser.add_argument("--micro", type=int, default=BATCH, help=f"Rollouts of a micro-batch (default: {BATCH}).")
    parser.add_argument("--only", choices=["step", "rollouts", "scoring"])
    options = parser.parse_args()
    if options.micro < 1 or BATCH % options.micro:
        parser.error(f"--micro is {options.micro}; give a divisor of {BATCH}")
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # without it TRL's accelerate takes all cores, for both sides
    bench = Bench(options.steps, options.tokens, options.micro)
    lengths = [len(completion) for completion in bench.rollouts.completions]
    print(f"completions of {statistics.mean(lengths):.1f} tokens on average, the longest {max(lengths)}")
    if options.only in (None, "rollouts"):
        compare("rollouts", options.repeats * 2, {"effopd": bench.our_rollouts, "generate": bench.generate})
    if options.only in (None, "scoring"):
        compare("scoring", options.repeats * 2, {"effopd": bench.our_scoring, "full logits": bench.plain_scoring})
    if options.only in (None, "step"):
        compare("step", options.repeats, {"effopd": bench.our_steps, "trl": bench.trl_steps}, bench.steps)
        print("exact reverse KL at the end: " + ", ".join(f"{k} {v:.4f}" for k, v in bench.quality.items()))


class Bench:
    """Models and prompts, and each side of each comparison."""

    def __init__(self, steps: int, tokens: int, micro: int) -> None:
        self.steps, self.tokens, self.micro = steps, tokens, micro
        task = build_task(Plan(CONFIG).config["task"])
        tables, _ = task.make_tables()
        self.tokenizer = task.make_tokenizer()
        self.tokenizer.padding_side = "left"
        self.texts = tables["train"]["problem"].tolist()
        self.prompts = [list(ids) for ids in self.tokenizer(self.texts)["input_ids"]]
        self.held_out = [list(ids) for ids in self.tokenizer(tables["validation"]["problem"].tolist())["input_ids"]]
        self.eos_id, self.pad_id = special_ids(self.tokenizer)
        self.student, self.teacher = (self._model(seed) for seed in (0, 1))
        self.quality = dict[str, float]()
        self.rollouts = self._engine(self.student).generate(
            self.prompts[:BATCH], range(BATCH), Sampling(1.0, self.tokens)
        )

    def _model(self, seed: int) -> PreTrainedModel:
        return random_student(
            seed,
            width=64,
            layers=4,
            heads=4,
            vocabulary=len(self.tokenizer),
            max_position_embeddings=32 + self.tokens,
            tie_word_embeddings=False,
            initializer_range=0.1,
            eos_token_id=self.eos_id,
            pad_token_id=self.pad_id,
        )

    def _engine(self, model: PreTrainedModel) -> TransformersEngine:
        return TransformersEngine(model, eos_id=self.eos_id, pad_id=self.pad_id, batch_size=BATCH)

    def our_rollouts(self) -> int:
        made = self._engine(self.student).generate(self.prompts[:BATCH], range(BATCH), Sampling(1.0, self.tokens))
        return made.completion_tokens

    def generate(self) -> int:
        batch = self.tokenizer(self.texts[:BATCH], padding=True, return_tensors="pt")
        made = self.student.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=self.tokens,
            do_sample=True,
            top_k=0,
            top_p=1.0,
        )[:, batch["input_ids"].shape[1] :]
        ended = (made == self.eos_id).int()
        return int((ended.cumsum(1) - ended == 0).sum())

    def our_scoring(self) -> int:
        return LocalTeacher(self.teacher, pad_id=self.pad_id, batch_size=BATCH).score(self.rollouts).tokens

    @torch.no_grad()
    def plain_scoring(self) -> int:
        """Log-softmax of the whole padded batch, prompts included, as a first version would do it."""
        rows = [p + c for p, c in zip(self.rollouts.prompts, self.rollouts.completions, strict=True)]
        width = max(map(len, rows))
        tokens = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = self.teacher(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
        logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])
        return self.rollouts.completion_tokens

    def our_steps(self) -> Timing:
        own = {"max_new_tokens": self.tokens, "micro_batch": self.micro}
        training = training_settings(Plan(CONFIG).runs["opd"]["training"] | own)
        student = copy.deepcopy(self.student)
        trainer = Trainer(student, TrainerSettings(LR, (0.9, 0.999), 0.0, 1.0))
        engine, teacher = self._engine(student), LocalTeacher(self.teacher, pad_id=self.pad_id, batch_size=BATCH)
        timings = []
        for step in range(1, self.steps + 1):
            started = now()
            rollouts = generate_rollouts(engine, self.prompts, training, 0, step)
            update_policy(trainer, rollouts, teacher.score(rollouts), training, step, self.pad_id)
            timings.append(since(started))
        self._measure("effopd", student)
        return median(timings)

    def trl_steps(self) -> Timing:
        student, clock = copy.deepcopy(self.student), Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = DistillationTrainer(
                model=student,
                teacher_model=copy.deepcopy(self.teacher),
                args=DistillationConfig(
                    output_dir=folder,
                    max_steps=self.steps,
                    per_device_train_batch_size=self.micro,
                    gradient_accumulation_steps=BATCH // self.micro,
                    learning_rate=LR,
                    lr_scheduler_type="constant",
                    adam_beta2=0.999,
                    max_grad_norm=1.0,
                    max_completion_length=self.tokens,
                    beta=1.0,  # reverse KL
                    use_cpu=True,
                    bf16=False,
                    activation_checkpointing=False,
                    report_to="none",
                    save_strategy="no",
                    logging_strategy="no",
                    disable_tqdm=True,
                ),
                train_dataset=Dataset.from_dict({"prompt": self.texts}),
                processing_class=self.tokenizer,
                callbacks=[clock],
            )
            trainer.train()
        self._measure("trl", student)
        return median(clock.timings)

    def _measure(self, side: str, student: PreTrainedModel) -> None:
        seeds = [seed_of(0, "held out", i) for i in range(len(self.held_out))]
        rollouts = self._engine(student).generate(self.held_out, seeds, Sampling(1.0, self.tokens))
        rows = measure_reverse_kl(student, self.teacher, rollouts, pad_id=self.pad_id, batch_size=BATCH)
        self.quality[side] = float(np.concatenate(rows).mean())


class Clock(TrainerCallback):
    """Times the Trainer's steps, from one end to the next: what lies between steps is part of them."""

    def __init__(self) -> None:
        self.timings: list[Timing] = []
        self.started = now()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.started = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.timings.append(since(self.started))
        self.started = now()


def now() -> Timing:
    return time.perf_counter(), time.process_time()


def since(started: Timing) -> Timing:
    seconds, cpu = now()
    return seconds - started[0], cpu - started[1]


def median(timings: Sequence[Timing]) -> Timing:
    """The first step warms up."""
    return statistics.median(t[0] for t in timings[1:]), statistics.median(t[1] for t in timings[1:])


def compare(what: str, repeats: int, sides: dict[str, Callable[[], Any]], steps: int = 0) -> None:
    """Run the sides in turn; a side returns its timing, or the tokens of work that is timed here."""
    found: dict[str, list[tuple[float, float, int]]] = {side: [] for side in sides}
    for _ in range(repeats + (0 if steps else 1)):
        for side, work in sides.items():
            started = now()
            done = work()
            found[side].append((*done, 1) if isinstance(done, tuple) else (*since(started), done))
    if not steps:  # the first of each warms up
        found = {side: rows[1:] for side, rows in found.items()}
    (ours, our_rows), (other, their_rows) = found.items()
    for side, rows in found.items():
        seconds, cpu, tokens = (statistics.median(row[i] for row in rows) for i in range(3))
        rate = "" if steps else f", {tokens / cpu:,.0f} tokens per CPU second"
        print(f"{what}: {side} {seconds:.3f} s, CPU {cpu:.3f} s{rate}")
    for number, clock in enumerate(("time", "CPU time")):
        ratios = [
            (b[number] / b[2]) / (a[number] / a[2]) for a, b in zip(our_rows, their_rows, strict=True)
        ]  # per token or step
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{what}: {ours} is {spread} times as fast as {other} by {clock}", flush=True)


if __name__ == "__main__":
    main()
