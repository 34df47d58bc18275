"""Tasks whose problems come from data sets: what `math`, `choice` and `code` share."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from effopd.common.errors import UserError
from effopd.common.formatting import one_line
from effopd.common.progress import say
from effopd.tasks.base import Problem, Task
from effopd.tasks.readers import Row, UnusableRowError
from effopd.tasks.sources import ColumnError, number_at, rows_of, source_name, text_at, wanted
from effopd.tasks.splits import Item, content_hash, make_splits

if TYPE_CHECKING:
    import pandas as pd


REASONS_SHOWN = 5


class FilteredRowError(Exception):
    """A row that does not meet the conditions of `where`."""


class DatasetTask(Task):
    """A task whose splits are sources of rows, or shares of the training split's."""

    def __init__(self, section: Mapping[str, Any]) -> None:
        self.section = section

    @abstractmethod
    def read_row(self, row: Row, columns: Mapping[str, Any]) -> tuple[Problem, str]:
        """The problem of a row, and the text whose hash says whether two problems are the same.

        Raises UnusableRowError if the row holds no problem, ColumnError if it lacks a column or holds something else
        there.
        """

    def unusable(self, problems: Sequence[Problem]) -> list[str]:
        """Why each problem is none after all, as only trying its verifier tells; "" for those that are."""
        return [""] * len(problems)

    def make_tables(self) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """The splits, with columns `problem`, `answer`, `difficulty` and `source`; no two problems are the same.

        `content` and `question` are hashes by which other tasks know their problems (`without_seen`). The training
        split has a column `response` where a source of its says which (`columns.response`).

        The facts count what was read and dropped: by source, the rows that `where` left out and those that are
        unusable, by reason; by split, duplicates, problems that a split held out before it holds, and those beyond its
        `rows`.
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
        responses = [item.response for item in splits.items.get("train", ())]
        if any(response is not None for response in responses):
            tables["train"]["response"] = [response or "" for response in responses]
        dropped = {"duplicates": splits.duplicates, "overlaps": splits.overlaps, "beyond_limit": splits.beyond_limit}
        return tables, {"sources": read, **dropped}

    def _read(self, source: Row) -> tuple[list[Item], dict[str, Any]]:
        """The items of a source, and the counts of what it held. Raises UserError if it holds none."""
        name = source_name(source)
        items: list[Item] = []
        item_places: list[str] = []
        unusable: Counter[str] = Counter()
        places: dict[str, str] = {}  # by reason: where the first row is that was left out for it
        refusals: dict[str, str] = {}  # by reason: what to say if no row is usable
        rows = filtered = 0
        try:
            for place, row in rows_of(source):
                rows += 1
                try:
                    items.append(self._item(row, source, name))
                    item_places.append(place)
                    continue
                except FilteredRowError:
                    filtered += 1
                    continue
                except UnusableRowError as error:
                    reason = str(error)
                except ColumnError as error:
                    reason = error.reason
                    refusals.setdefault(reason, str(error))
                except RecursionError:
                    reason = "values that are nested too deeply"
                unusable[reason] += 1
                places.setdefault(reason, place)
        except UserError as error:
            raise UserError(f"source {name}: {error}") from error
        reasons = self.unusable([item.problem for item in items])
        for place, reason in zip(item_places, reasons, strict=True):
            if reason:
                unusable[reason] += 1
                places.setdefault(reason, place)
        items = [item for item, reason in zip(items, reasons, strict=True) if not reason]
        counts = ", ".join(
            f"{count} {reason} (first: {places[reason]})" for reason, count in unusable.most_common(REASONS_SHOWN)
        )
        if not items:
            (reason, _), *_ = unusable.most_common(1) or [("", 0)]
            if reason in refusals:
                raise UserError(f"source {name}: {refusals[reason]}")
            why = f"; {counts}" if counts else ""
            raise UserError(
                f"source {name}: none of its {rows} rows is a problem ({filtered} left out by `where`{why}). Check its "
                "`columns` and `where`."
            )
        if unusable:
            say(one_line(f"source {name}: {unusable.total()} of {rows} rows are unusable and left out: {counts}"))
        facts = {"source": name, "rows": rows, "filtered": filtered, "unusable": dict(unusable), "kept": len(items)}
        return items, facts

    def _item(self, row: Row | UnusableRowError, source: Row, name: str) -> Item:
        """A row's problem. Raises FilteredRowError, UnusableRowError or ColumnError if it holds none."""
        if isinstance(row, UnusableRowError):
            raise row
        if not wanted(row, source["where"]):
            raise FilteredRowError
        columns = source["columns"]
        problem, content = self.read_row(row, columns)
        if "difficulty" in columns:
            problem = replace(problem, difficulty=number_at(row, columns["difficulty"]))
        question = text_at(row, columns["problem"])
        response = text_at(row, columns["response"]) if "response" in columns else None
        return Item(problem, content_hash(content), name, content_hash(question), response)
