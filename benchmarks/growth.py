"""How the cost of on-policy distillation grows: with parameters, length, vocabulary, rollouts and steps.

    python benchmarks/growth.py [--repeats 3] [--plot growth.png]

Random students and teachers of one shape, random prompts, completions that all reach the limit, float32, one thread.
From a middle shape one size is changed at a time, in four points. Printed are CPU seconds (medians) of a step's
rollouts, scores and update (of several in a row, where their number is what grows), and the exponent b of
seconds ~ size^b: the slope of the logarithms, by least squares. Sides are measured in turn, so that a busy machine
disturbs all points alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass

from effopd.workflow.fork_server import MALLOC

if __name__ == "__main__" and any(name not in os.environ for name in MALLOC):  # as jobs of the workflow run
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})

import torch
from matplotlib import pyplot as plt
from scipy.stats import linregress
from shared import random_student
from transformers import Qwen3ForCausalLM

from effopd.config.schema import section_defaults
from effopd.distillation.step import generate_rollouts, update_policy
from effopd.engines.transformers_engine import TransformersEngine
from effopd.teachers.scoring import LocalTeacher
from effopd.training.trainer import Trainer, TrainerSettings
from effopd.workflow.job_specs import training_settings

PROMPT_TOKENS = 8
PARTS = ("rollouts", "scores", "update")


@dataclass(frozen=True)
class Shape:
    """What the cost depends on."""

    width: int = 128
    tokens: int = 32  # a completion
    vocabulary: int = 512
    rollouts: int = 32
    steps: int = 1  # in a row

    def model(self, seed: int) -> Qwen3ForCausalLM:
        return random_student(
            seed,
            width=self.width,
            layers=4,
            heads=4,
            vocabulary=self.vocabulary,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
            eos_token_id=None,
        )


VARIED = {  # the size that is plotted, and the shapes
    "parameters": [Shape(width=width) for width in (64, 128, 256, 512)],
    "completion tokens": [Shape(tokens=tokens) for tokens in (16, 64, 256, 1024)],
    "vocabulary entries": [Shape(vocabulary=entries) for entries in (512, 4096, 32768, 131072)],
    "rollouts": [Shape(rollouts=count) for count in (8, 32, 128, 512)],
    "steps": [Shape(steps=count) for count in (1, 4, 16, 64)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="Times each point is measured (default: 3).")
    parser.add_argument("--plot", help="Draw it to this file.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    curves = {name: measured(shapes, options.repeats) for name, shapes in VARIED.items()}
    for name, points in curves.items():
        print(f"\n{name:>18}  " + "  ".join(f"{part:>9}" for part in PARTS))
        for size, seconds in points:
            print(f"{size:18,}  " + "  ".join(f"{seconds[part]:9.3f}" for part in PARTS))
        print("          exponent  " + "  ".join(f"{exponent(points, part):9.2f}" for part in PARTS))
    if options.plot:
        draw(curves, options.plot)


Points = list[tuple[int, dict[str, float]]]


def measured(shapes: list[Shape], repeats: int) -> Points:
    """(size, CPU seconds of each part) of each shape; the shapes are taken in turn."""
    benches = [Bench(shape) for shape in shapes]
    rows = [[bench.measure() for bench in benches] for _ in range(repeats + 1)][1:]  # the first warms up
    medians = [{part: statistics.median(row[i][part] for row in rows) for part in PARTS} for i in range(len(shapes))]
    fields = ("tokens", "vocabulary", "rollouts", "steps")
    names = [field for field in fields if len({getattr(shape, field) for shape in shapes}) > 1]
    sizes = [getattr(b.shape, names[0]) if names else b.parameters for b in benches]
    return list(zip(sizes, medians, strict=True))


class Bench:
    """Steps of one shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape, student, teacher = shape, shape.model(0), shape.model(1)
        self.parameters = sum(p.numel() for p in student.parameters())
        size = min(32, shape.rollouts)
        own = {"prompts_per_step": shape.rollouts, "batch_size": size, "max_new_tokens": shape.tokens}
        self.training = training_settings(section_defaults("training") | own)
        never = shape.vocabulary  # an end that no model writes: all completions are as long as they may be
        self.engine = TransformersEngine(student, eos_id=never, pad_id=0, batch_size=size)
        self.teacher = LocalTeacher(teacher, pad_id=0, batch_size=size)
        self.trainer = Trainer(student, TrainerSettings.of(self.training))
        draw = torch.Generator().manual_seed(0)
        self.prompts = torch.randint(1, shape.vocabulary, (shape.rollouts, PROMPT_TOKENS), generator=draw).tolist()
        self.steps = 0

    def measure(self) -> dict[str, float]:
        """CPU seconds of each part, of as many steps as the shape says."""
        rows = [self.step() for _ in range(self.shape.steps)]
        return {part: sum(row[part] for row in rows) for part in PARTS}

    def step(self) -> dict[str, float]:
        self.steps += 1
        times = [time.process_time()]
        rollouts = generate_rollouts(self.engine, self.prompts, self.training, 0, self.steps)
        times.append(time.process_time())
        scores = self.teacher.score(rollouts)
        times.append(time.process_time())
        update_policy(self.trainer, rollouts, scores, self.training, self.steps, 0)
        times.append(time.process_time())
        return {part: later - before for part, before, later in zip(PARTS, times, times[1:], strict=False)}


def exponent(points: Points, part: str) -> float:
    logs = torch.tensor([[size, seconds[part]] for size, seconds in points], dtype=torch.float64).log().numpy()
    return float(linregress(logs[:, 0], logs[:, 1]).slope)


def draw(curves: dict[str, Points], path: str) -> None:
    figure, grid = plt.subplots(1, len(curves), figsize=(13, 3.2), sharey=True, layout="constrained")
    for axes, (name, points) in zip(grid, curves.items(), strict=True):
        for part, color, marker in zip(PARTS, ("#0072b2", "#e69f00", "#009e73"), "osD", strict=True):
            sizes, seconds = zip(*((size, times[part]) for size, times in points), strict=True)
            label = f"{part}, {exponent(points, part):.2f}"
            axes.loglog(sizes, seconds, color=color, marker=marker, label=label)
        axes.set_xlabel(name)
        axes.legend(frameon=False, fontsize=8, title="part, exponent", title_fontsize=8)
    grid[0].set_ylabel("CPU seconds")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
