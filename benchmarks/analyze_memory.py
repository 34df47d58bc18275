"""Peak memory and time of `effopd analyze` on a pair of checkpoints of a billion parameters.

    python benchmarks/analyze_memory.py --folder DIR [--threads 1] [--layers 16]

Writes two sharded bf16 checkpoints of the shapes of Llama-3.2-1B (2.5 GB each) with updates of low rank and noise,
analyses them in a process of their own, prints its peak resident memory, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 2048, 8192, 512, 128256


def shards(layers: int) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """A file's name, and the shapes of what is in it."""
    yield "embedding.safetensors", {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (KEYS, HIDDEN),
            "self_attn.v_proj": (KEYS, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        named = {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
        yield f"layer{layer}.safetensors", named


def update(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Rank 16 and noise for a projection, noise for anything else; large enough to show in bf16."""
    noise = 1e-3 * torch.randn(shape, generator=generator)
    if len(shape) == 1 or shape[0] == VOCABULARY:
        return noise
    left, right = (torch.randn(size, 16, generator=generator) for size in shape)
    return noise + 1e-3 * (left * torch.logspace(0, -1, 16)) @ right.T


def write_pair(folder: Path, layers: int) -> None:
    """Write folder/base and folder/trained, a file at a time."""
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for side in ("base", "trained"):
        (folder / side).mkdir()
    for file, shapes in shards(layers):
        base, trained = {}, {}
        for name, shape in shapes.items():
            weights = torch.randn(shape, generator=generator) * (0.02 if len(shape) == 2 else 1.0)
            base[name], trained[name] = weights.bfloat16(), (weights + update(shape, generator)).bfloat16()
            weight_map[name] = file
        save_file(base, folder / "base" / file)
        save_file(trained, folder / "trained" / file)
    for side in ("base", "trained"):
        (folder / side / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (folder / side / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": True}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="a folder to make, and to remove again")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=16)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    try:
        # in a process of its own: a child's peak counts from that of the process that starts it
        writer = multiprocessing.get_context("spawn").Process(target=write_pair, args=(options.folder, options.layers))
        writer.start()
        writer.join()
        count = sum(math.prod(shape) for _, shapes in shards(options.layers) for shape in shapes.values())
        command = [sys.executable, "-m", "effopd", "analyze", "--device", "cpu", "--threads", str(options.threads)]
        for option, name in (("--base", "base"), ("--trained", "trained"), ("--out", "out")):
            command += [option, str(options.folder / name)]
        started = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        print(
            f"{count / 1e9:.2f} B parameters in bf16, {options.threads} threads: "
            f"exit status {os.waitstatus_to_exitcode(status)}, {time.perf_counter() - started:.0f} s, "
            f"peak resident memory {usage.ru_maxrss / 2**20:.2f} GiB"
        )
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
