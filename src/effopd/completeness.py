"""Whether a checkpoint holds all of a model and nothing else, by what transformers itself says when it loads one.

So tied heads, base models without the prefix of their wrapper, names of older versions and experts that are fused while
loading are as right here as they are there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig

from effopd.checkpoint_files import Stored, some
from effopd.runtime.errors import ArtifactError

_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)(\..*)")


def check_headers(path: Path, tensors: Mapping[str, Stored], model: PreTrainedModel) -> None:
    """Compare the headers of a checkpoint with an architecture without storage, before anything large is read.

    `model` is used up. Raises ArtifactError, naming the tensors, unless they are all of the model's weights and no
    others, in the right shapes.
    """
    meta = torch.device("meta")
    state = {name: torch.empty(stored.shape, device=meta) for name, stored in tensors.items()}
    # What `from_pretrained` does, which takes a device only with the package accelerate.
    settings = LoadStateDictConfig(
        ignore_mismatched_sizes=True,
        device_map={"": meta},
        dtype=model.dtype,
        weight_mapping=cast(Any, get_model_conversion_mapping(model, None, None)),
    )
    info, _ = model._load_pretrained_model(model, state, None, settings)
    info = model._finalize_model_loading(model, settings, info)
    check_loaded(path, tensors, model, info.to_dict())


def check_loaded(path: Path, tensors: Mapping[str, Stored], model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """The same from the `info` with which transformers loaded the checkpoint into `model`."""
    found = list(_differences(tensors, model, info))
    if found:
        raise ArtifactError(
            f"{path} is not a whole {type(model).__name__}, as its config.json describes it: {'; '.join(found)}. "
            "Save the model again with `save_pretrained`, or correct config.json."
        )


def _differences(tensors: Mapping[str, Stored], model: PreTrainedModel, info: Mapping[str, Any]) -> Iterator[str]:
    if missing := sorted(info["missing_keys"]):
        yield f"it lacks {some(missing)}"
    if unexpected := sorted(info["unexpected_keys"]):
        yield f"it has {some(unexpected)} besides"
    if mismatched := sorted(info["mismatched_keys"]):
        shapes = [f"{name} is {tuple(found)}, not {tuple(expected)}" for name, found, expected in mismatched]
        yield some(shapes)
    if twice := sorted(name for name in tensors if f"{model.base_model_prefix}.{name}" in tensors):
        yield f"it has {some(twice)} both with and without the prefix `{model.base_model_prefix}.`"
    yield from _gaps(tensors)


def _gaps(names: Iterable[str]) -> Iterator[str]:
    """Experts whose numbers do not run from 0: transformers stacks them in the order of their names, whatever those."""
    numbers = defaultdict(set)
    for name in names:
        if found := _EXPERT.fullmatch(name):
            numbers[found[1], found[3]].add(int(found[2]))
    for (before, after), present in sorted(numbers.items()):
        if present != set(range(len(present))):
            absent = min(set(range(len(present))) - present)
            yield f"it lacks {before}{absent}{after}"
            return
