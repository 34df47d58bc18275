"""Splits that no problem shares: by content hash, whatever the sources, their order and their number of rows."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effopd.common.randomness import seed_of
from effopd.tasks.base import Problem

if TYPE_CHECKING:
    import pandas as pd

HELD_OUT_FIRST = ("test", "validation", "train")  # who keeps a problem that several splits hold


@dataclass(frozen=True)
class Item:
    """A problem of a source, with the hash that says what it asks."""

    problem: Problem
    content: str  # from `content_hash`
    source: str  # name of the source
    question: str  # the same of the question alone, where `content` counts its choices too
    response: str | None = None  # a worked response, "" if its row has none; None if the source has no such column

    @property
    def place(self) -> float:
        """Where in [0, 1) the content hash lies."""
        return int(self.content[:13], 16) / 16**13


def content_hash(text: str) -> str:
    """Digest of a problem's text, blind to case, white space and Unicode variants of one character."""
    normalized = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(normalized.encode()).hexdigest()


@dataclass
class Splits:
    """Disjoint splits, and what was dropped on the way."""

    items: dict[str, list[Item]]
    duplicates: dict[str, int]  # by split: problems that the split already held
    overlaps: dict[str, int]  # by split: problems that another split, held out before it, holds
    beyond_limit: dict[str, int]  # by split: problems beyond its `rows`


def make_splits(
    given: Mapping[str, Sequence[Item]], shares: Mapping[str, float], limits: Mapping[str, int], seed: int
) -> Splits:
    """Make the splits of `given` items disjoint, and cut those with a share from the training items.

    A problem belongs to the first of test, validation and train that holds it, so held-out splits are whole and
    training is what loses a row. `shares` says which part of the training problems a split takes; it takes them by
    content hash, so a problem's split stays when sources grow. `limits` draws that many problems of a split, by
    `seed`; a larger limit adds to them.
    """
    pools = {split: list(items) for split, items in given.items()}
    if shares:
        for item in pools.pop("train"):
            pools.setdefault(_cut(item, shares), []).append(item)
    splits = Splits({}, {}, {}, {})
    taken: set[str] = set()
    for split in (name for name in HELD_OUT_FIRST if name in given or name in shares):
        pool = pools.get(split, [])
        fresh = [item for item in pool if item.content not in taken]
        distinct = list({item.content: item for item in reversed(fresh)}.values())[::-1]  # the first of each
        taken |= {item.content for item in distinct}
        kept = _draw(distinct, limits.get(split, len(distinct)), seed)
        splits.items[split] = kept
        splits.overlaps[split] = len(pool) - len(fresh)
        splits.duplicates[split] = len(fresh) - len(distinct)
        splits.beyond_limit[split] = len(distinct) - len(kept)
    return splits


def _cut(item: Item, shares: Mapping[str, float]) -> str:
    """The split that takes a training item."""
    start = 0.0
    for split in HELD_OUT_FIRST:
        if start <= item.place < start + shares.get(split, 0.0):
            return split
        start += shares.get(split, 0.0)
    return "train"


def _draw(items: list[Item], count: int, seed: int) -> list[Item]:
    """`count` of the items, drawn by seed and content, in their order."""
    if count >= len(items):
        return items
    chosen = {item.content for item in sorted(items, key=lambda i: seed_of(seed, "rows", i.content))[:count]}
    return [item for item in items if item.content in chosen]


def without_seen(table: pd.DataFrame, seen: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of a table of problems that are in none of the tables `seen`, which may be another task's.

    Two problems are the same if what counts of them is, or if what counts of one is the other's question alone, such as
    that of multiple choice asked as a problem of mathematics.
    """
    contents = {hashed for one in seen for hashed in _hashes(one, "content")}
    questions = {hashed for one in seen for hashed in _hashes(one, "question")}
    own, alone = _hashes(table, "content"), _hashes(table, "question")
    return table[~(own.isin(contents | questions) | alone.isin(contents))].reset_index(drop=True)


def _hashes(table: pd.DataFrame, column: str) -> pd.Series:
    """A column of hashes; of problems that are what they ask, where a task writes none."""
    return table[column] if column in table else table["problem"].map(content_hash)
