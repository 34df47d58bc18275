"""Where a job computes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from effopd.runtime.errors import ConfigError

if TYPE_CHECKING:
    import torch


def prepare_device(choice: str, threads: int) -> torch.device:
    """The torch device of `runtime.device`, with `threads` CPU threads. Raises ConfigError where there is none."""
    import torch

    torch.set_num_threads(threads)
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError("config: `runtime.device` is 'cuda', and this machine has no usable GPU. Use auto or cpu.")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank, ranks = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks > torch.cuda.device_count():
        raise ConfigError(
            f"config: {ranks} ranks need as many GPUs, and this machine shows {torch.cuda.device_count()}. "
            "Lower the model's `ranks`, or set `runtime.device` to cpu."
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)
