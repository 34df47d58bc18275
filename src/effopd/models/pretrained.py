"""Where pretrained models come from: the Hugging Face hub or a local folder, and which of their files are used.

Light to import (no torch): the Snakefile reads it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effopd.common.errors import ConfigError
from effopd.models.checkpoint_files import ADAPTER
from effopd.tasks.sources import is_local

# Configuration, safetensors and tokenizer: all that is fetched. Weights in other formats are never read.
FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model",
    "*.tiktoken", "chat_template*",
)  # fmt: skip
CODE = ("*.py",)  # read where `trust_remote_code` is on
ATTEMPTS, FIRST_PAUSE_SECONDS = 4, 2.0


def patterns(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The patterns of the names of a model's files."""
    return FILES + (CODE if model["trust_remote_code"] else ())


def local_model_files(model: Mapping[str, Any]) -> list[Path]:
    """The files of a model's local folder; none for one of the hub.

    Raises ConfigError where the folder does not exist or holds no safetensors.
    """
    if not is_local(model["path"]):
        return []
    folder = Path(model["path"])
    if not folder.is_dir():
        raise ConfigError(
            f"config: the model folder {folder} does not exist. Correct its `path` in `models`, or leave the ./ out "
            "for a model of the hub."
        )
    names = [path.name for path in folder.iterdir() if path.is_file()]
    if ADAPTER in names:
        raise ConfigError(
            f"config: the model folder {folder} holds an adapter ({ADAPTER}), which belongs to another model. Merge it "
            "(`merge_and_unload`), save the result in a folder of its own and name that."
        )
    if not fnmatch.filter(names, "model*.safetensors"):
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = f"only {pickled[0]} and the like, which may run code when read" if pickled else "no weights"
        raise ConfigError(
            f"config: the model folder {folder} holds {why}. Save the model as safetensors "
            "(`model.save_pretrained(folder)`) and name that folder."
        )
    return sorted(folder / name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns(model)))
