"""Passes of similar lengths against passes in the rollouts' order: scoring and updates, CPU time and positions.

    python benchmarks/padding.py [--repeats 5] [--tokens 1024] [--batch 16] [--micro 8]

A random student of 4 layers, 128 wide, and a teacher like it, float32, one thread; 64 rollouts of random tokens whose
lengths are drawn from a geometric distribution with a mean of a third of the limit and cut there, as lengths of
answers that are mostly short and sometimes cut. Scoring works in fixed batches, the update in micro-batches. The sides
alternate; ratios are of CPU time, above 1 is faster than in order. In brackets: the mean score and the gradient's norm,
which must agree.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from unittest import mock

from effopd.workflow.fork_server import MALLOC

if __name__ == "__main__" and any(name not in os.environ for name in MALLOC):  # as jobs of the workflow run
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})

import numpy as np
import torch
from shared import random_student

from effopd.config.schema import section_defaults
from effopd.data import rollouts
from effopd.data.batching import passes_of
from effopd.data.rollouts import Rollouts
from effopd.distillation import step as distillation
from effopd.teachers.scoring import LocalTeacher
from effopd.training.trainer import Trainer, TrainerSettings
from effopd.workflow.job_specs import training_settings

ROLLOUTS, PROMPT_TOKENS, VOCABULARY = 64, 32, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="Times each side is measured (default: 5).")
    parser.add_argument("--tokens", type=int, default=1024, help="Longest completion (default: 1024).")
    parser.add_argument("--batch", type=int, default=16, help="Rollouts of a fixed batch (default: 16).")
    parser.add_argument("--micro", type=int, default=8, help="Rollouts of a micro-batch (default: 8).")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.tokens, options.batch, options.micro)
    compare("scoring", bench.score, options.repeats)
    compare("update", bench.update, options.repeats)
    lengths = bench.rollouts.lengths
    batches = [lengths[first : first + options.batch] for first in range(0, ROLLOUTS, options.batch)]
    for name, parts, size in (("scoring", batches, options.batch), ("update", [lengths], options.micro)):
        before, after = (sum(positions(part, way(part, size)) for part in parts) for way in (in_order, passes_of))
        print(f"{name}: {sum(lengths):,} tokens, {before:,} positions in order, {after:,} by length")


def in_order(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Passes without regard to lengths."""
    rows = list(range(len(lengths)))
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def positions(lengths: Sequence[int], passes: list[list[int]]) -> int:
    return sum(len(rows) * max(lengths[row] for row in rows) for rows in passes)


class Bench:
    """A student, its teacher, and rollouts of many lengths."""

    def __init__(self, tokens: int, batch: int, micro: int) -> None:
        student, teacher = (
            random_student(
                seed,
                width=128,
                layers=4,
                heads=4,
                vocabulary=VOCABULARY,
                max_position_embeddings=2 * tokens + PROMPT_TOKENS,
                tie_word_embeddings=False,
            )
            for seed in (0, 1)
        )
        draw = np.random.default_rng(0)
        lengths = np.minimum(draw.geometric(3 / tokens, ROLLOUTS), tokens)
        completions = [draw.integers(1, VOCABULARY, length).tolist() for length in lengths]
        self.rollouts = Rollouts(
            prompts=draw.integers(1, VOCABULARY, (ROLLOUTS, PROMPT_TOKENS)).tolist(),
            completions=completions,
            logprobs=[np.full(len(c), -np.log(VOCABULARY), np.float32) for c in completions],
            finished=[True] * ROLLOUTS,
        )
        own = {"batch_size": batch, "micro_batch": micro, "lr": 0.0}
        self.training = training_settings(section_defaults("training") | own)
        self.teacher = LocalTeacher(teacher, pad_id=0, batch_size=batch)
        self.trainer = Trainer(student, TrainerSettings.of(self.training))
        self.scores = self.teacher.score(self.rollouts)

    def score(self) -> float:
        """The mean of the scores."""
        return float(np.concatenate(self.teacher.score(self.rollouts).logprobs).mean())

    def update(self) -> float:
        """The norm of the gradient, whose step changes nothing: the learning rate is 0."""
        facts = distillation.update_policy(self.trainer, self.rollouts, self.scores, self.training, 1, 0)
        return facts["gradient_norm"]


def compare(name: str, work: Callable[[], float], repeats: int) -> None:
    seconds: dict[str, list[float]] = {"in order": [], "by length": []}
    results = {}
    for repeat, side in itertools.product(range(repeats + 1), seconds):  # the first warms up
        with ExitStack() as stack:
            if side == "in order":
                stack.enter_context(mock.patch.object(rollouts, "passes_of", in_order))
                stack.enter_context(mock.patch.object(distillation, "passes_of", in_order))
            started = time.process_time()
            results[side] = work()
            if repeat:
                seconds[side].append(time.process_time() - started)
    ratios = [before / after for before, after in zip(*seconds.values(), strict=True)]
    medians = ", ".join(f"{side} {statistics.median(of):.2f} s ({results[side]:.6g})" for side, of in seconds.items())
    print(f"{name}: {medians}; {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
