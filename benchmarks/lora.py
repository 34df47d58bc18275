"""An update with LoRA against one of the whole model: processor time and memory.

    python benchmarks/lora.py [--rank 16] [--sequences 16] [--tokens 64] [--repeats 5]

A random Qwen3-shaped model of 30 million parameters in float32, the negative log-likelihood of random tokens, AdamW.
Each turn of each side is a process of its own, in alternation: three steps, of which the first warms up. Printed are
medians, and of the ratio to the whole model the range over turns. Memory is the peak resident memory above what was
there before the trainer was made: gradients, optimizer, activations and what they leave behind, but not the weights.
"""

from __future__ import annotations

import argparse
import multiprocessing
import threading
import time

import numpy as np
import torch
from shared import random_student, resident_bytes
from transformers import Qwen3ForCausalLM

from effopd.losses.divergences import negative_log_likelihood, token_logprobs
from effopd.specs.updates import LoraSettings
from effopd.training.lora import LoraTrainer
from effopd.training.trainer import Trainer, TrainerSettings

SETTINGS = TrainerSettings(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, gradient_clipping=1.0)
VOCABULARY, STEPS = 4096, 3


def make_model() -> Qwen3ForCausalLM:
    return random_student(0, width=512, layers=8, heads=8, vocabulary=VOCABULARY, tie_word_embeddings=True)


def loss_of(model: torch.nn.Module, tokens: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.flatten(0, 1)
    return negative_log_likelihood(token_logprobs(logits, tokens[:, 1:].flatten()), tokens[:, 1:].numel()), {}


def turn(side: str, options: argparse.Namespace, answers: multiprocessing.Queue) -> None:
    """Put (parameters, CPU seconds of a step, bytes above the model) of one side."""
    torch.set_num_threads(1)
    model = make_model()
    tokens = torch.randint(VOCABULARY, (options.sequences, options.tokens + 1))
    parameters, before = sum(parameter.numel() for parameter in model.parameters()), resident_bytes()
    most, running, seconds = 0, True, []

    def watch() -> None:
        nonlocal most
        while running:
            most = max(most, resident_bytes())
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    lora = LoraSettings(options.rank, 2 * options.rank, "attention_mlp")
    trainer = LoraTrainer(model, SETTINGS, lora, 0) if side == "lora" else Trainer(model, SETTINGS)
    for _ in range(STEPS):
        started = time.process_time()  # of the processor: others may be at work on it
        trainer.step([tokens], loss_of, 1e-4)
        seconds.append(time.process_time() - started)
    running = False
    watcher.join()
    answers.put((parameters, float(np.median(seconds[1:])), most - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[int, float, int]]] = {"whole": [], "lora": []}
    for _ in range(options.repeats):
        for side, turns in found.items():
            answers = spawn.Queue()
            process = spawn.Process(target=turn, args=(side, options, answers))
            process.start()
            turns.append(answers.get())
            process.join()
    print(f"{found['whole'][0][0]:,} parameters, rank {options.rank}, {options.sequences} x {options.tokens} tokens")
    for number, what, unit in ((1, "CPU time of a step", 1.0), (2, "memory above the model, MiB", 2.0**20)):
        whole, lora = (np.array([result[number] for result in found[side]]) / unit for side in ("whole", "lora"))
        ratios = lora / whole
        print(
            f"{what}: LoRA {np.median(lora):.3g}, whole {np.median(whole):.3g}, ratio {np.median(ratios):.2f} "
            f"({ratios.min():.2f} to {ratios.max():.2f})"
        )


if __name__ == "__main__":
    main()
