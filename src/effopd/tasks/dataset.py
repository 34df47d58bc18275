"""Tasks whose problems come from data sets: what `math`, `choice` and `code` share."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from effopd.runtime.errors import UserError
from effopd.tasks.base import Problem, Task
from effopd.tasks.sources import Row, number_at, rows_of, source_name, text_at, wanted
from effopd.tasks.splits import Item, content_hash, make_splits

if TYPE_CHECKING:
    import pandas as pd


class UnusableRowError(Exception):
    """A row that holds no problem; the message says why."""


class DatasetTask(Task):
    """A task whose splits are sources of rows, or shares of the training split's."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.section = section

    @abstractmethod
    def read_row(self, row: Row, columns: Mapping[str, Any]) -> tuple[Problem, str]:
        """The problem of a row, and the text whose hash says whether two problems are the same.

        Raises UnusableRowError where the row holds no problem, UserError where the columns are not the data's.
        """

    def unusable(self, problems: Sequence[Problem]) -> list[str]:
        """Why each problem is none after all, as only trying its verifier tells; "" for those that are."""
        return [""] * len(problems)

    def make_tables(self) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """The splits, with columns `problem`, `answer`, `difficulty` and `source`; no two problems are the same.

        `content` and `question` are hashes by which other tasks know their problems (`without_seen`).

        The facts count what was read and dropped: by source, the rows that `where` or a missing value left out; by
        split, duplicates, problems that a split held out before it holds, and those beyond its `rows`.
        """
        import pandas as pd

        given: dict[str, list[Item]] = {}
        read = []
        for split, settings in self.section["splits"].items():
            for source in settings.get("sources", ()):
                items, facts = self._read(source)
                given.setdefault(split, []).extend(items)
                read.append({"split": split, **facts})
        shares = {name: split["share"] for name, split in self.section["splits"].items() if "share" in split}
        limits = {name: split["rows"] for name, split in self.section["splits"].items() if "rows" in split}
        splits = make_splits(given, shares, limits, self.section["seed"])
        for split, kept in splits.items.items():
            if not kept:
                raise UserError(
                    f"the {split} split holds no problem: all were left out, are duplicates or are held out elsewhere. "
                    f"Change `task.splits.{split}`."
                )
        tables = {
            split: pd.DataFrame(
                {
                    "problem": [item.problem.text for item in kept],
                    "answer": [item.problem.answer for item in kept],
                    "difficulty": pd.Series([item.problem.difficulty for item in kept], dtype=float),
                    "source": [item.source for item in kept],
                    "content": [item.content for item in kept],
                    "question": [item.question for item in kept],
                }
            )
            for split, kept in splits.items.items()
        }
        dropped = {"duplicates": splits.duplicates, "overlaps": splits.overlaps, "beyond_limit": splits.beyond_limit}
        return tables, {"sources": read, **dropped}

    def _read(self, source: Row) -> tuple[list[Item], dict[str, Any]]:
        """The items of a source, and the counts of what it held."""
        name = source_name(source)
        items: list[Item] = []
        unusable: Counter[str] = Counter()
        rows = filtered = 0
        try:
            for row in rows_of(source):
                rows += 1
                if not wanted(row, source["where"]):
                    filtered += 1
                    continue
                try:
                    problem, content = self.read_row(row, source["columns"])
                except UnusableRowError as error:
                    unusable[str(error)] += 1
                    continue
                if "difficulty" in source["columns"]:
                    problem = replace(problem, difficulty=number_at(row, source["columns"]["difficulty"]))
                question = text_at(row, source["columns"]["problem"])
                items.append(Item(problem, content_hash(content), name, content_hash(question)))
        except UserError as error:
            raise UserError(f"source {name}: {error}") from error
        reasons = self.unusable([item.problem for item in items])
        items = [item for item, reason in zip(items, reasons, strict=True) if not reason]
        unusable.update(reason for reason in reasons if reason)
        facts = {"source": name, "rows": rows, "filtered": filtered, "unusable": dict(unusable), "kept": len(items)}
        if not items:
            why = "".join(f"; {count}: {reason}" for reason, count in unusable.most_common(3))
            raise UserError(
                f"source {name}: none of its {rows} rows is a problem ({filtered} left out by `where`{why}). Check its "
                "`columns` and `where`."
            )
        return items, facts
