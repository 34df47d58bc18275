"""Where a job computes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from effopd.common.errors import ConfigError

if TYPE_CHECKING:
    import torch


NO_GPU = "config: `runtime.device` is 'cuda', and this machine has no usable GPU. Use auto or cpu."


def check_machine(device: str, specs: Iterable[str], own_environment: bool) -> None:
    """Raise ConfigError if this machine lacks the GPU or the engine that jobs with these specs (JSON) compute with.

    Engines are looked for if the jobs run in this process's environment.
    """
    specs = list(specs)
    if specs and device == "cuda":
        asked = subprocess.run([sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"])
        if asked.returncode:
            raise ConfigError(NO_GPU)
    generating = any('"name":"vllm"' in spec for spec in specs)
    if generating and own_environment and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "config: an `engine` is 'vllm', which is not installed here. Install `effopd[vllm]` on a GPU, use the "
            "environment of `make setup-vllm` on a CPU, or choose `engine: transformers`."
        )


def prepare_device(choice: str, threads: int) -> torch.device:
    """The torch device of `runtime.device`, with `threads` CPU threads. Raises ConfigError if there is none."""
    import torch

    torch.set_num_threads(threads)
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError(NO_GPU)
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank, ranks = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if ranks > torch.cuda.device_count():
        raise ConfigError(
            f"config: {ranks} ranks need as many GPUs, and this machine shows {torch.cuda.device_count()}. "
            "Lower the model's `num_processes`, or set `runtime.device` to cpu."
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)
