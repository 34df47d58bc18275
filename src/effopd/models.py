"""Models as Hugging Face folders, and their weights as flat dictionaries of float32 tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from effopd.frozen import frozen_dtype
from effopd.runtime.artifacts import atomic_path, read_manifest
from effopd.runtime.errors import ArtifactError

Weights = dict[str, torch.Tensor]


@contextlib.contextmanager
def _quiet_transformers() -> Any:
    """No progress bar for each of hundreds of loads."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    yield


def load_model(folder: str | Path, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a local folder of safetensors, in evaluation mode, whatever type the files have.

    Code that comes with a checkpoint is run only where its manifest says that the configuration trusts it. Raises
    ArtifactError where the folder is not such a model.
    """
    with _quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=_trusts(folder)
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} is not a loadable Hugging Face model: {error}") from error
    model = model.to(device)  # type: ignore[arg-type]  # (its wrapper hides the signature)
    return model.eval()


def load_frozen(folder: Path, device: torch.device) -> PreTrainedModel:
    """A model of the workflow that is not trained further, such as a teacher, held as its `dtype` in `models` says.

    One that the workflow trained is held in the precision that it was trained in.
    """
    return load_model(folder, device, dtype_of(frozen_dtype(_section(folder))))


def dtype_of(precision: str) -> torch.dtype:
    """The torch type of a `precision` or `dtype` in the configuration."""
    found: torch.dtype = getattr(torch, precision)
    return found


def model_config(folder: str | Path, trust: bool | None = None) -> PretrainedConfig:
    """The architecture of a model folder. Raises ArtifactError where transformers does not know it."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=_trusts(folder) if trust is None else trust
        )
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{folder} is not a model that transformers knows: {' '.join(str(error).split())}"
        ) from error
    return config


def model_with(
    folder: str | Path,
    weights: Mapping[str, torch.Tensor],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """The architecture of a model folder with other weights, whose own weight files are then not read.

    Raises ArtifactError where the weights are not of this architecture.
    """
    model = _model_of(model_config(folder), weights, dtype, _trusts(folder)).to(device)  # type: ignore[arg-type]
    return model.eval()


def without_weights(folder: str | Path) -> PreTrainedModel:
    """The architecture of a model folder, its parameters without storage. Raises ArtifactError as `model_config`."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            model_config(folder), trust_remote_code=_trusts(folder)
        )
    return model


def _model_of(
    config: PretrainedConfig, weights: Mapping[str, torch.Tensor], dtype: torch.dtype, trust: bool = False
) -> PreTrainedModel:
    with no_init_weights():  # which would take longer than all else with a large model
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust)
    model.tie_weights()
    load_weights_into(model, weights)
    return model


def load_tokenizer(folder: str | Path, trust: bool | None = None) -> PreTrainedTokenizerFast:
    with _quiet_transformers():
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=_trusts(folder) if trust is None else trust
        )
    return tokenizer


def _trusts(folder: str | Path) -> bool:
    """Whether the configuration trusts the code that comes with a model of the workflow."""
    return bool(_section(folder).get("trust_remote_code", False))


def _section(folder: str | Path) -> dict[str, Any]:
    """What the configuration said of the model in a folder of the workflow; nothing of other folders."""
    try:
        section = read_manifest(Path(folder) / "manifest.json", "model").spec.get("model", {})
    except ArtifactError:
        return {}
    return section if isinstance(section, dict) else {}


def special_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """The token that ends a sequence, and the one that pads it: the same where the tokenizer has none to pad with.

    Raises ArtifactError where the tokenizer has no end-of-sequence token.
    """
    eos_id, pad_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    if eos_id is None:
        raise ArtifactError(f"{tokenizer.name_or_path}: its tokenizer names no end-of-sequence token. Set `eos_token`.")
    return int(eos_id), int(eos_id if pad_id is None else pad_id)


def save_model(
    config: PretrainedConfig,
    weights: Mapping[str, torch.Tensor],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer load, its weights rounded to `dtype`."""
    model = _model_of(config, weights, dtype)
    with _quiet_transformers():
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def weights_in(model: torch.nn.Module) -> Weights:
    """The trainable parameters by name, not copied; tied parameters once."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def weights_of(model: torch.nn.Module) -> Weights:
    """A copy of the trainable parameters by name, float32 on the CPU; tied parameters once."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True) for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def load_weights_into(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights into a model's parameters in place. Raises ArtifactError where names or shapes differ."""
    parameters = dict(model.named_parameters())
    check_weights({name: tuple(parameter.shape) for name, parameter in parameters.items()}, weights)
    for name, parameter in parameters.items():
        parameter.copy_(weights[name])


def write_checkpoint(model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> None:
    """Write a model's weights in `dtype`, named and shaped as its family has them on disk; no tokenizer.

    Each rank that calls this writes its own folder: of itself transformers lets the first rank alone write.
    """
    weights = {name: tensor.to("cpu", dtype) for name, tensor in weights_in(model).items()}
    model.should_save_on_this_rank = lambda is_main_process: is_main_process  # type: ignore[method-assign]
    try:
        with _quiet_transformers():
            model.save_pretrained(folder, state_dict=weights)
    finally:
        del model.should_save_on_this_rank


def check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ArtifactError, naming the parameters, unless weights are of a model with these parameters."""
    if differ := sorted(shapes.keys() ^ weights.keys()):
        raise ArtifactError(f"the weights are not this model's: {', '.join(differ[:5])} on one side only")
    for name, shape in shapes.items():
        if shape != tuple(weights[name].shape):
            raise ArtifactError(
                f"the weights are not this model's: {name} is {tuple(weights[name].shape)}, not {shape}"
            )


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    with atomic_path(path) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=dict(facts or {})
        )


def load_tensors(path: Path) -> Weights:
    """Read a safetensors file. Raises ArtifactError where it is damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Delete it and run the workflow again.") from error
