"""What works around DeepSpeed (0.19.8) or reaches into it, each piece with its reason and its test."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from effopd.common.errors import ArtifactError


def import_deepspeed(on_cpu: bool) -> ModuleType:
    """DeepSpeed, told which accelerator to use and kept from filling the log with its start-up notes."""
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed = importlib.import_module("deepspeed")
    with mock.patch("torch.compile", lambda function=None, **_: function or (lambda inner: inner)):
        # ZeRO imports the Muon optimizer (github.com/deepspeedai/DeepSpeed/pull/7509), which is not used here. It
        # compiles functions on import, and importing the compiler takes seconds.
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # the import has set it anew
    if on_cpu:  # gloo serves; else the first job of a machine would compile a C++ extension of its own
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def linear_map(function: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Replace torch's linear map inside the block, whatever the block makes of it.

    ZeRO 3 replaces it for every model of the process, for good (github.com/deepspeedai/DeepSpeed/pull/8189): put around
    initialization and each step, this keeps the replacement, which frees gathered weights, to the model in training.
    """
    functional: Any = torch.nn.functional
    before = functional.linear
    functional.linear = function
    try:
        yield
    finally:
        functional.linear = before


def in_zero3(parameter: torch.nn.Parameter) -> bool:
    """Whether ZeRO 3 partitions a parameter."""
    return hasattr(parameter, "ds_id")


def has_own_master(parameter: torch.nn.Parameter) -> bool:
    """Whether DeepSpeed keeps a float32 copy of a parameter (ZeRO 1 to 3, or its bf16 optimizer)."""
    return in_zero3(parameter) or hasattr(parameter, "_hp_mapping")


def flat_masters(optimizer: Any) -> list[torch.Tensor]:
    """The tensors that AdamW itself works on under ZeRO 1 to 3: this rank's flat parts of the float32 masters.

    Every optimizer of DeepSpeed's keeps them under another name. Raises ArtifactError if there are none.
    """
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    raise ArtifactError(f"DeepSpeed's {type(optimizer).__name__} keeps its masters where effopd does not know.")


def write_kept(parameter: Any, value: torch.Tensor, *moment: str) -> None:
    """Set what DeepSpeed keeps of a parameter, its master or a moment, to a value that every rank has in one piece."""
    utils = importlib.import_module("deepspeed.utils")
    if in_zero3(parameter):  # whose `safe_set_full_*` fail for sizes that the number of ranks does not divide
        size = parameter.ds_tensor.numel()
        start = size * dist.get_rank(parameter.ds_process_group)
        part = value.flatten()[start : start + size]
        part = torch.nn.functional.pad(part, (0, size - part.numel()))
        write = utils.safe_set_local_optimizer_state if moment else utils.safe_set_local_fp32_param
        write(parameter, part, *moment)
    elif moment:
        utils.safe_set_full_optimizer_state(parameter, value, *moment)
    else:
        utils.safe_set_full_fp32_param(parameter, value)
