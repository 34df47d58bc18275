"""Models as Hugging Face folders, and their weights as flat dictionaries of float32 tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights

from effopd.artifacts.folders import filled, writing
from effopd.artifacts.manifests import atomic_path, read_manifest
from effopd.common.errors import ArtifactError
from effopd.models.checkpoint_files import check_permission, read_object
from effopd.models.completeness import whole_tensors
from effopd.models.config_files import check_config, check_generates
from effopd.models.frozen import frozen_dtype
from effopd.models.hugging_face import quiet, reading

Weights = dict[str, torch.Tensor]


def load_model(folder: str | Path, device: torch.device, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a local folder of safetensors, in evaluation mode, whatever type the files have.

    Code that comes with a checkpoint is run only where its manifest says that the configuration trusts it. Raises
    ArtifactError if the folder is not such a model, or does not hold all of its weights and no others.
    """
    whole_tensors(Path(folder), without_weights(folder))
    with reading(folder, "a loadable Hugging Face model"):
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=_trusts(folder)
        )
    loaded: PreTrainedModel = model.to(device).eval()  # type: ignore[arg-type]  # (its wrapper hides the signature)
    return loaded


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
    """The architecture of a model folder. Raises ArtifactError if transformers does not know it, or it is quantized."""
    path = Path(folder) / "config.json"
    if path.is_file():
        check_config(path)
    with reading(folder, "a model that transformers knows"):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=_trusts(folder) if trust is None else trust
        )
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
    model = _model_of(model_config(folder), weights, dtype, _trusts(folder))
    moved: PreTrainedModel = model.to(device).eval()  # type: ignore[arg-type]
    return moved


def without_weights(folder: str | Path, trust: bool | None = None) -> PreTrainedModel:
    """The architecture of a model folder, its parameters without storage. Raises ArtifactError as `model_config`."""
    trust = _trusts(folder) if trust is None else trust
    config = model_config(folder, trust)
    with reading(folder, "a causal language model"), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
    check_generates(Path(folder) / "config.json", model)
    return model


def known_architecture(folder: Path) -> PreTrainedModel | None:
    """The architecture of anybody's checkpoint folder, its parameters without storage; none of its code is run.

    None if there is no config.json, or it describes what transformers does not know. Raises ArtifactError if the file
    is damaged or describes no possible model.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    entry = read_object(path)
    kind, names = entry.get("model_type"), entry.get("architectures")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    config = model_config(folder, trust=False)
    named = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
    own = getattr(named, "config_class", None) is type(config)  # of another head than that of language models, perhaps
    if not own and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    with reading(folder, "a model that transformers knows"), torch.device("meta"):
        model: PreTrainedModel = named(config) if named and own else AutoModelForCausalLM.from_config(config)
    return model


def _model_of(
    config: PretrainedConfig,
    weights: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    trust: bool = False,
    lent: bool = False,
) -> PreTrainedModel:
    """A model with a copy of these weights, or with the very tensors where they are `lent` to it."""
    where = config.name_or_path or "the configuration"
    with reading(where, "a causal language model"), no_init_weights():  # which would take longer than all else
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust)
    model.tie_weights()
    (lend_weights if lent else load_weights_into)(model, weights)
    return model


def load_tokenizer(folder: str | Path, trust: bool | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder. Raises ArtifactError if it has none that can be used."""
    with reading(folder, "a folder with a usable tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=_trusts(folder) if trust is None else trust
        )
    fast: PreTrainedTokenizerFast = tokenizer
    return fast


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
    """Write the files that AutoModelForCausalLM and AutoTokenizer load, the weights rounded to `dtype`.

    They replace files and links of these names in `folder`. Raises OSError if they cannot be written.
    """
    model = _model_of(config, weights, dtype, lent=True)
    with quiet(), filled(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        tokenizer.save_pretrained(part)


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


@torch.no_grad()
def lend_weights(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Let a model's parameters be these very tensors, where they have its type and are on its device, else copies.

    What held its parameters before is let go. Raises ArtifactError where names or shapes differ.
    """
    parameters = dict(model.named_parameters())
    check_names(parameters, weights)
    for name, parameter in parameters.items():
        tensor = weights[name]
        check_shape(name, tuple(parameter.shape), tensor)
        parameter.data = tensor.to(parameter.device, parameter.dtype)


@torch.no_grad()
def release_weights(model: torch.nn.Module) -> None:
    """Let go of a model's parameters, of which only shapes stay, until others are lent to it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.new_zeros(1).expand(parameter.shape)


def write_checkpoint(model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> None:
    """Write a model's weights in `dtype`, named and shaped as its family has them on disk; no tokenizer.

    Each rank that calls this writes its own folder: of itself transformers lets the first rank alone write.
    """
    weights = {name: tensor.to("cpu", dtype) for name, tensor in weights_in(model).items()}
    model.should_save_on_this_rank = lambda is_main_process: is_main_process  # type: ignore[method-assign]
    try:
        with quiet(), writing(folder):
            model.save_pretrained(folder, state_dict=weights)
    finally:
        del model.should_save_on_this_rank


def check_weights(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ArtifactError, naming the parameters, unless weights are of a model with these parameters."""
    check_names(shapes, weights)
    for name, shape in shapes.items():
        check_shape(name, shape, weights[name])


def check_names(own: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ArtifactError, naming the parameters, unless weights have the names that a model's own have."""
    if differ := sorted(own.keys() ^ weights.keys()):
        raise ArtifactError(f"the weights are not this model's: {', '.join(differ[:5])} on one side only")


def check_shape(name: str, shape: tuple[int, ...], tensor: torch.Tensor) -> None:
    """Raise ArtifactError unless a parameter's tensor has this shape."""
    if shape != tuple(tensor.shape):
        raise ArtifactError(f"the weights are not this model's: {name} is {tuple(tensor.shape)}, not {shape}")


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Raises OSError if it cannot be written."""
    with atomic_path(path) as temporary, writing(path):
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=dict(facts or {})
        )


def load_tensors(path: Path) -> Weights:
    """Read a safetensors file. Raises ArtifactError where it is damaged, PermissionError where it may not be read."""
    check_permission(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Delete it and run the workflow again.") from error
