"""Prompts: the token ids of a task's problems, made once for each model and read by every stage that generates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from effopd.artifacts.manifests import Manifest, atomic_path, read_manifest
from effopd.common.errors import ArtifactError, UserError
from effopd.data.chats import render_chats
from effopd.data.verification import encode_prompts
from effopd.tasks.base import Problem

SCHEMA = pa.schema([("row", pa.int64()), ("tokens", pa.list_(pa.int32()))])


class TokenLists(Sequence[list[int]]):
    """Lists of token ids, four bytes a token until one is asked for: every job of a run reads all prompts."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | Sequence[list[int]]:
        if isinstance(index, slice):
            return TokenLists(self.column[index])
        tokens: list[int] = self.column[index].as_py()
        return tokens


@dataclass(frozen=True)
class Prompts:
    """N problems as a model is asked them."""

    tokens: Sequence[list[int]]  # N lists of token ids
    problems: Sequence[Problem]  # N

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.problems):
            raise ValueError(f"{len(self.tokens)} prompts of {len(self.problems)} problems")

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Sequence[int]) -> Prompts:
        return Prompts([self.tokens[i] for i in rows], [self.problems[i] for i in rows])


def tokenize_problems(
    tokenizer: PreTrainedTokenizerFast, problems: Sequence[str], settings: Mapping[str, Any] | None
) -> list[list[int]]:
    """Token ids of the prompts of problems, as `task.prompt` says; None: each problem is its own prompt.

    Raises UserError if a chat is asked for, and the tokenizer's chat template does not make one of each problem, or if
    a plain prompt begins with the beginning-of-sequence token twice.
    """
    if settings is None:
        return encode_prompts(tokenizer, problems)
    template = settings["template"]
    texts = [template.replace("{problem}", problem) for problem in problems]
    turns = [(template.replace("{problem}", turn["user"]), turn["assistant"]) for turn in settings["examples"]]
    if settings["format"] == "plain":
        before = _plain_turns(template, turns)
        prompts = encode_prompts(tokenizer, [before + text for text in texts])
        begin = tokenizer.bos_token_id
        if begin is not None and all(tokens[:2] == [begin, begin] for tokens in prompts):
            raise UserError(
                f"prompts would begin with {tokenizer.bos_token} twice: the tokenizer puts it before any text. Remove "
                "it from `task.prompt.template`."
            )
        return prompts
    rendered = render_chats(tokenizer, texts, settings["system"], settings["thinking"], turns)
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])  # the template has put them in


def _plain_turns(template: str, turns: Sequence[tuple[str, str]]) -> str:
    """What stands before a problem in plain prompts: examples as the model would have gone on from their problems.

    Where two parts meet without white space of either, a blank line parts them. For a problem its template decides, so
    that all prompts begin alike.
    """
    shown = ""
    for question, answer in turns:
        shown += question + _gap(template, answer) + answer + _gap(answer, template)
    return shown


def _gap(first: str, second: str) -> str:
    return "" if first[-1:].isspace() or second[:1].isspace() else "\n\n"


def write_tokens(path: Path, prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
    """Write the prompts of these rows of a split: `row` (in the split's data) and `tokens`."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.table({"row": rows, "tokens": [prompts[row] for row in rows]}, schema=SCHEMA), temporary)


def load_tokens(prompts: Manifest, split: str) -> TokenLists:
    """Token ids of a split's prompts, for stages that need no answers."""
    return TokenLists(pq.read_table(prompts.file(f"{split}.parquet"), columns=["tokens"])["tokens"])


def load_prompts(prompts: Manifest, split: str) -> Prompts:
    """A split's prompts with their problems. Raises ArtifactError if the data that they are of is not there."""
    rows = pq.read_table(prompts.file(f"{split}.parquet"), columns=["row"])["row"].to_pylist()
    problems = load_problems(data_of(prompts), split)
    return Prompts(load_tokens(prompts, split), [problems[row] for row in rows])


def data_of(prompts: Manifest) -> Manifest:
    """The data that prompts were made from, one folder up. Raises ArtifactError if it is gone or another."""
    data = read_manifest(prompts.path.parent.parent / "manifest.json", "data")
    if data.fingerprint != prompts.parents["data"]:
        raise ArtifactError(
            f"{prompts.path} was made from other data than {data.path} (fingerprint {prompts.parents['data']}, not "
            f"{data.fingerprint}). Delete it and run the workflow again."
        )
    return data


def other_task(data: Manifest) -> str | None:
    """The name in `evaluation.tasks` of the task that data is of; None for the task that is trained on."""
    return data.path.parent.name if "training" in data.parents else None


def load_problems(data: Manifest, split: str) -> list[Problem]:
    """The problems of a split."""
    table = pd.read_parquet(data.file(f"{split}.parquet"), columns=["problem", "answer", "difficulty"])
    rows = table.itertuples(index=False, name=None)
    return [Problem(text, answer, None if math.isnan(level) else level) for text, answer, level in rows]
