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
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils.loading_report import LoadStateDictInfo

from effopd.common.errors import ArtifactError
from effopd.models.checkpoint_files import Stored, some, stored_tensors
from effopd.models.hugging_face import reading

ROWS = 2**12  # compared at a time
_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)(\..*)")


def whole_tensors(path: Path, model: PreTrainedModel) -> dict[str, Stored]:
    """The weights of a checkpoint that holds all weights of an architecture without storage, and no others.

    Nothing large is read but a head that is stored beside the embedding to which it is tied; it is left out.
    `model` is used up. Raises ArtifactError, naming the tensors that are missing, unexpected or of other shapes, and as
    `stored_tensors` does.
    """
    tensors = stored_tensors(path)
    meta = torch.device("meta")
    state = {name: torch.empty(stored.shape, device=meta) for name, stored in tensors.items()}
    # What `from_pretrained` does, which takes a device only with the package accelerate.
    settings = LoadStateDictConfig(
        ignore_mismatched_sizes=True,
        device_map={"": meta},
        dtype=model.dtype,
        weight_mapping=cast(Any, get_model_conversion_mapping(model, None, None)),
    )
    with reading(path, f"a loadable {type(model).__name__}"):
        info, _ = model._load_pretrained_model(model, state, None, settings)
        if not info.conversion_errors and not info.mismatched_keys:  # the next step drops names, or makes new weights
            info = model._finalize_model_loading(model, settings, info)
    if found := list(_differences(tensors, model, info)):
        raise ArtifactError(
            f"{path} is not a whole {type(model).__name__}, as its config.json describes it: {'; '.join(found)}. "
            "Save the model again with `save_pretrained`, or correct config.json."
        )
    for tied in model.all_tied_weights_keys.items():
        head, embedding = (
            name if name in tensors else name.removeprefix(f"{model.base_model_prefix}.") for name in tied
        )
        if head in tensors and embedding in tensors:
            check_tied(path, tensors[head], tensors[embedding])
            del tensors[head]
    return tensors


def check_tied(path: Path, head: Stored, embedding: Stored) -> None:
    """Raise ArtifactError unless a stored head equals the embedding: transformers would then not tie them."""
    with safe_open(head.file, "pt") as first, safe_open(embedding.file, "pt") as second:
        one, other = first.get_slice(head.name), second.get_slice(embedding.name)
        for start in range(0, head.shape[0] if head.shape == embedding.shape else 1, ROWS):
            rows = slice(start, start + ROWS)
            if head.shape != embedding.shape or not torch.equal(one[rows].float(), other[rows].float()):
                raise ArtifactError(
                    f"{path} holds a {head.name} that differs from {embedding.name}, to which its config.json ties it. "
                    "Set `tie_word_embeddings` to false there, or save the model without it."
                )


def _differences(tensors: Mapping[str, Stored], model: PreTrainedModel, info: LoadStateDictInfo) -> Iterator[str]:
    """Of the `info` with which transformers loaded the tensors into the model."""
    unfit, mismatched = sorted(info.conversion_errors), sorted(info.mismatched_keys)
    if unfit:
        yield f"{some(unfit)} cannot be made of the parts that it has"
    if mismatched:
        yield some([f"{name} is {tuple(found)}, not {tuple(expected)}" for name, found, expected in mismatched])
    missing, unexpected = sorted(info.missing_keys), sorted(info.unexpected_keys)
    if missing and not unfit and not mismatched:  # tied heads are among them otherwise
        yield f"it lacks {some(missing)}"
    if unexpected:
        yield f"it has {some(unexpected)} besides"
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
