"""The program in a completion: which of its fenced code blocks counts, and where that block ends."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

PYTHON = re.compile(r"(python|pypy|py)[\d.]*", re.IGNORECASE)
MARKDOWN = ("markdown", "md")
# A fence may follow white space and the markers of list items.
OPENING = re.compile(r"(?P<indent>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
LANGUAGE = re.compile(r"[ \t]*\{?\.?([\w+#.-]*)")
# What may hide a quotation mark in Python: comments and strings on one line. Then strings on several.
# Each of these matches wherever it begins, so that no text takes long.
STRINGS = re.compile(r"""#.*|(?P<long>\"\"\"|\'\'\')|"(?:\\.|[^"\\])*+"?|'(?:\\.|[^'\\])*+'?""")
ENDS = {mark: re.compile(rf"(?:\\.|[^\\])*?{mark}") for mark in ('"""', "'''")}


class NoProgramError(Exception):
    """A completion without a program; the message says why."""


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    language: str  # as it is written; "" if it is not
    text: str

    @property
    def is_python(self) -> bool:
        return PYTHON.fullmatch(self.language) is not None


def program_in(completion: str) -> str:
    """The program of a completion: its last block of Python or, if none says so, its last block of no language.

    Blocks of other languages (text, bash, ...) do not count, nor does a last block that is not closed: it was cut.
    Raises NoProgramError if there is none.
    """
    blocks = _blocks(completion.split("\n"))
    programs = [block for block in blocks if block.is_python] or [block for block in blocks if not block.language]
    if programs:
        return programs[-1].text
    if blocks:
        raise NoProgramError(f"the last code block is in {blocks[-1].language[:20]}, not in Python")
    raise NoProgramError("no answer: no complete code block")


def _blocks(lines: list[str], nested: bool = True) -> list[Block]:
    """The complete blocks, in order; with `nested`, those within a block of Markdown in its place."""
    blocks: list[Block] = []
    place = 0
    while place < len(lines):
        opening = OPENING.match(lines[place])
        place += 1
        if opening is None or ("`" in opening["info"] and opening["fence"][0] == "`"):
            continue  # no fence, or code within a sentence
        end = _end(lines, place, opening)
        if end is None:
            break  # all the rest is in this block
        content = _content(lines[place:end], len(opening["indent"]))
        block = Block(_language(opening), "\n".join(content))
        blocks += _blocks(content, nested=False) if nested and block.language.lower() in MARKDOWN else [block]
        place = end if _opens_another(lines[end], opening) else end + 1
    return blocks


def _language(opening: re.Match[str]) -> str:
    found = LANGUAGE.match(opening["info"])
    return found[1] if found else ""


def _end(lines: list[str], start: int, opening: re.Match[str]) -> int | None:
    """The line that closes a block; None if no line does.

    In Python, a fence within a string on several lines (a docstring, say) closes nothing unless the string never ends.
    """
    language = _language(opening)
    closing = re.compile(rf"[ \t]*{opening['fence'][0]}{{{len(opening['fence'])},}}(.*)")
    within = ""  # the mark that ends the string which the line begins in
    first = None
    for place in range(start, len(lines)):
        line = lines[place].rstrip("\r")
        found = closing.match(line)
        if found and not _closes(found[1], opening, line):
            found = None
        if found and not within:
            return place
        first = place if found and first is None else first
        if not language or PYTHON.fullmatch(language):
            within = _string_after(line, within)
    return first


def _closes(rest: str, opening: re.Match[str], line: str) -> bool:
    """Whether a line with a fence closes a block, `rest` being what follows the fence.

    Three backticks are never Python, wherever they stand and whatever follows: a model forgot a line break, or a fence.
    """
    if not rest.strip():
        indent = len(line) - len(line.lstrip())
        return _in_python(opening) or indent <= len(opening["indent"]) + 3
    return opening["fence"][0] == "`" and _in_python(opening)


def _in_python(opening: re.Match[str]) -> bool:
    language = _language(opening)
    return not language or PYTHON.fullmatch(language) is not None


def _opens_another(line: str, opening: re.Match[str]) -> bool:
    """Whether the line that closes a block is the first of the next, as its language says."""
    found = OPENING.match(line)
    return found is not None and _in_python(opening) and PYTHON.fullmatch(_language(found)) is not None


def _string_after(line: str, within: str) -> str:
    """The mark of the string on several lines that is open after a line of Python; `within` is that before it."""
    place = 0
    while place < len(line):
        if within:
            end = ENDS[within].match(line, place)
            if end is None:
                return within
            place, within = end.end(), ""
            continue
        found = STRINGS.search(line, place)
        if found is None:
            return ""
        place, within = found.end(), found["long"] or ""
    return within


def _content(lines: list[str], indent: int) -> list[str]:
    """A block's lines without the indentation of its fence and, if the first is indented further, all they share."""
    content = [line[min(indent, len(line) - len(line.lstrip(" \t"))) :] for line in lines]
    first = next((line for line in content if line.strip()), "")
    return textwrap.dedent("\n".join(content)).split("\n") if first[:1] in (" ", "\t") else content
