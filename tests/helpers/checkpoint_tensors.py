"""The tensors of a checkpoint on disk."""

from __future__ import annotations

from safetensors.torch import load_file


def tensors(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
