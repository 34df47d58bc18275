"""What several benchmarks have in common: random students, and the memory that a process takes."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def random_student(
    seed: int, *, width: int, layers: int, heads: int, vocabulary: int, **settings: Any
) -> Qwen3ForCausalLM:
    """A random model of the embedded experiment's form: the MLP three times as wide, two query heads to a key's."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=width // heads,
        bos_token_id=None,
        **settings,
    )
    return Qwen3ForCausalLM(config).eval()


def resident_bytes() -> int:
    """Memory that this process holds at the moment."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
