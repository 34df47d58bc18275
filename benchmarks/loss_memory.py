"""Loss and backward of one micro-batch over a large vocabulary: chunks against a plain KL of all logits in one go.

    python benchmarks/loss_memory.py [--vocabulary 151936] [--positions 1024] [--hidden 256] [--repeats 5]

Both sides get the same last hidden states of student and teacher and the same student head, and leave the gradients of
the hidden states and of the head. Time, of the processor: the sides take turns in one process, after one turn each to warm up;
printed are the median and range over turns of the ratio to the plain reverse KL. Memory: each side once in a process of its own, the
peak resident memory above what was there before it began.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time

import numpy as np
import torch
from shared import resident_bytes

from effopd.config.schema import section_defaults
from effopd.data.rollouts import Rollouts
from effopd.distillation.objective import ScoredBatch, distillation_loss
from effopd.losses.chunked import HeadAndLoss
from effopd.models.lm_head import Head, KnownTokens
from effopd.teachers.scoring import Scores
from effopd.workflow.job_specs import training_settings

SIDES = ("plain", "full", "top_k", "sampled")


class Case:
    """A student's and a teacher's hidden states and heads, and what the teacher said."""

    def __init__(self, positions: int, vocabulary: int, hidden: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return torch.randn(shape, generator=generator).mul_(scale)

        self.states = random(positions, hidden).requires_grad_()
        self.weight = torch.nn.Parameter(random(vocabulary, hidden, scale=hidden**-0.5))
        self.teacher = Head(random(vocabulary, hidden, scale=hidden**-0.5), None, None, KnownTokens(vocabulary))
        tokens = torch.randint(vocabulary, (positions,), generator=generator).tolist()
        zeros = np.zeros(positions, np.float32)
        self.rollouts = Rollouts([[0]], [tokens], [zeros], [True])
        teacher_states = random(positions, hidden)
        top_ids = torch.randperm(vocabulary, generator=generator)[:64].int().repeat(positions, 1).numpy()
        top_logprobs = np.full((positions, 64), np.log(0.9 / 64), np.float32)
        self.scores = {
            "sampled": Scores([zeros]),
            "top_k": Scores([zeros], top_ids=[top_ids], top_logprobs=[top_logprobs]),
            "full": Scores([zeros], hidden_states=[teacher_states.numpy()]),
        }

    def plain(self) -> torch.Tensor:
        """All logits of both models at once."""
        teacher_logits = self.teacher(torch.from_numpy(self.scores["full"].hidden_states[0]))
        student = torch.log_softmax(torch.nn.functional.linear(self.states, self.weight), -1)
        teacher = torch.log_softmax(teacher_logits, -1)
        return torch.nn.functional.kl_div(teacher, student, log_target=True, reduction="batchmean")

    def chunked(self, support: str) -> torch.Tensor:
        objective = {"objective": section_defaults("training")["objective"] | {"support": support}}
        training = training_settings(section_defaults("training") | objective)
        micro = ScoredBatch.from_rollouts(self.rollouts, self.scores[support], 0, torch.device("cpu"), self.teacher)

        def loss_of(logits: torch.Tensor, rows: slice) -> torch.Tensor:
            return distillation_loss(training, len(self.states), micro, logits, rows)[0]

        loss: torch.Tensor = HeadAndLoss.apply(self.states, self.weight, None, len(self.weight), loss_of)
        return loss

    def run(self, side: str) -> float:
        self.states.grad = self.weight.grad = None
        loss = self.plain() if side == "plain" else self.chunked(side)
        loss.backward()
        return loss.item()


def timed(case: Case, side: str) -> float:
    started = time.process_time()  # of the processor: others may be at work on it
    case.run(side)
    return time.process_time() - started


def peak_of(side: str, sizes: tuple[int, int, int], threads: int, answers: multiprocessing.Queue) -> None:
    """Put the most bytes of resident memory that the side took above what was there."""
    torch.set_num_threads(threads)
    case = Case(*sizes)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64)).sum()  # the libraries' own buffers
    before, most, running = resident_bytes(), 0, True

    def watch() -> None:
        nonlocal most
        while running:
            most = max(most, resident_bytes())
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    case.run(side)
    running = False
    watcher.join()
    answers.put(most - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spawn = multiprocessing.get_context("spawn")
    print("| vocabulary | loss | time, of the plain KL's | memory, of the plain KL's |\n| --- | --- | --- | --- |")
    sizes = options.positions, options.vocabulary, options.hidden
    peaks = {}
    for side in SIDES:
        answers = spawn.Queue()
        process = spawn.Process(target=peak_of, args=(side, sizes, options.threads, answers))
        process.start()
        peaks[side] = answers.get()
        process.join()
    case = Case(*sizes)
    assert abs(case.run("plain") - case.run("full")) < 1e-4 * case.run("full"), "they compute different things"
    turns = [{side: timed(case, side) for side in SIDES} for _ in range(options.repeats)]
    for side in SIDES:
        ratios = np.array([turn[side] / turn["plain"] for turn in turns])
        seconds = np.median([turn[side] for turn in turns])
        print(
            f"| {options.vocabulary:,} | {side} | {np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f}), "
            f"{seconds:.2f} s | {peaks[side] / peaks['plain']:.3f}, {peaks[side] / 2**20:.0f} MiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
