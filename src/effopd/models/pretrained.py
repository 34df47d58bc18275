"""Where pretrained models come from: the hub, a local folder or file, or a package; and which files are used.

Light to import (no torch): the Snakefile reads it.
"""

from __future__ import annotations

import fnmatch
from pathlib import Path

from effopd.common.errors import ConfigError
from effopd.models.checkpoint_files import ADAPTER, some
from effopd.models.gguf_header import is_gguf
from effopd.specs.models import PretrainedSettings
from effopd.tasks.sources import is_local

# Configuration, safetensors and tokenizer: all that is fetched. Weights in other formats are never read.
FILES = (
    "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model",
    "*.tiktoken", "chat_template*",
)  # fmt: skip
CODE = ("*.py",)  # read where `trust_remote_code` is on
ATTEMPTS, FIRST_PAUSE_SECONDS = 4, 2.0


def is_dequantized(model: PretrainedSettings) -> bool:
    """Whether a model is made of a GGUF file, as far as can be seen before it is fetched."""
    if model.path is None or not is_local(model.path):
        return model.package is not None
    place = Path(model.path)
    return is_gguf(place) or (any(place.glob("*.gguf")) and not any(place.glob("model*.safetensors")))


def patterns(model: PretrainedSettings) -> tuple[str, ...]:
    """The patterns of the names of a model's files."""
    return FILES + (CODE if model.trust_remote_code else ())


def local_model_files(model: PretrainedSettings) -> list[Path]:
    """The files of a model's local folder, or its one GGUF file; none for one of the hub or of a package.

    Raises ConfigError if the folder does not exist, or holds neither safetensors nor a single GGUF file.
    """
    if model.path is None or not is_local(model.path):
        return []
    folder = Path(model.path)
    if is_gguf(folder) and not folder.is_dir():
        if not folder.is_file():
            raise ConfigError(f"config: the GGUF file {folder} does not exist. Correct its `path` in `models`.")
        return [folder]
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
        files = sorted(folder / name for name in names if is_gguf(Path(name)))
        if len(files) > 1:
            raise ConfigError(
                f"config: the model folder {folder} holds several GGUF files "
                f"({some([file.name for file in files])}). Name one of them as `path` in `models`."
            )
        if files:
            return files
        pickled = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        why = f"only {pickled[0]} and the like, which may run code when read" if pickled else "no weights"
        raise ConfigError(
            f"config: the model folder {folder} holds {why}. Save the model as safetensors "
            "(`model.save_pretrained(folder)`) and name that folder."
        )
    return sorted(folder / name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns(model)))
