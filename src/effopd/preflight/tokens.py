"""Checks of what student and teacher read: tokenizer, end of sequence, chat template, and lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from effopd.common.errors import UserError
from effopd.data.prompts import tokenize_problems
from effopd.preflight.findings import Finding, failed, passed, warned

MOST_LEFT_OUT = 0.05  # share of prompts left out as too long above which a check warns


def check_tokenizer(
    check: str,
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    rows: Mapping[str, int],
    texts: Sequence[str],
) -> Finding:
    """Every token has one id in both, both read `texts` alike, and all ids have a row in both embeddings.

    `rows` are the embedding rows by role; more rows than tokens (padding) are allowed.
    """
    why = "The teacher would score other tokens than the student wrote, without an error."
    same_family = "Take a teacher with the student's tokenizer, such as one trained from the same base."
    own, other = student.get_vocab(), teacher.get_vocab()
    moved = sorted((token for token in own.keys() & other.keys() if own[token] != other[token]), key=own.__getitem__)
    taken = {number: token for token, number in other.items()}
    renamed = sorted(number for token, number in own.items() if token not in other and number in taken)
    if moved:
        token = moved[0]
        example = f"{token!r} is {own[token]} for the student and {other[token]} for the teacher"
        return failed(check, f"{len(moved)} of {len(own)} tokens have two ids ({example})", why, same_family)
    if renamed:
        number = renamed[0]
        example = f"{number} is {student.convert_ids_to_tokens(number)!r} and {taken[number]!r}"
        return failed(check, f"{len(renamed)} ids mean two tokens ({example})", why, same_family)
    for text in texts:
        if student(text)["input_ids"] != teacher(text)["input_ids"]:
            return failed(check, f"{_shown(text)} is split into other tokens by the teacher", why, same_family)
    needed = 1 + max(max(own.values()), max(other.values()))
    if short := {role: count for role, count in rows.items() if count < 1 + max(own.values())}:
        role, count = next(iter(short.items()))
        return failed(
            check,
            f"the {role}'s embedding has {count} rows for ids up to {max(own.values())}",
            "A token without a row ends the run, or reads another's memory.",
            "Resize its embedding, or take the tokenizer that belongs to it.",
        )
    measured = f"{len(own)} tokens, embeddings of {rows['student']} and {rows['teacher']} rows"
    if only := own.keys() ^ other.keys():
        token = sorted(only)[0]
        return warned(
            check,
            f"{measured}; {len(only)} tokens are known to one of them alone ({token!r}), ids below {needed}",
            "The other never learned them, and its probabilities for them are noise.",
            "Nothing, if no prompt or answer uses them.",
        )
    return passed(check, measured)


def check_eos(
    check: str,
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    generation: Mapping[str, Sequence[int]],
) -> Finding:
    """Both tokenizers end sequences with one token, which the models' generation configs (ids by role) know."""
    why = "Answers would not end where the model has learned to end them: they grow to the length limit."
    own, other = student.eos_token_id, teacher.eos_token_id
    if own is None or own != other:
        return failed(
            check,
            f"the student's tokenizer ends with {_token(student, own)}, the teacher's with {_token(teacher, other)}",
            why,
            "Set `eos_token` of one tokenizer to the other's, or take models of one family.",
        )
    for role, ids in generation.items():
        if ids and own not in ids:
            return failed(
                check,
                f"the tokenizer ends with {_token(student, own)}, the {role}'s generation config with {list(ids)}",
                why,
                "Make `eos_token` of the tokenizer and `eos_token_id` of generation_config.json agree.",
            )
    others = sorted({number for ids in generation.values() for number in ids} - {own})
    if others:
        names = ", ".join(_token(student, number) for number in others)
        return warned(
            check,
            f"{_token(student, own)} ends a rollout; the generation configs also name {names}",
            "A model that ends with one of those goes on to the length limit.",
            "Look at the share of finished rollouts after the first steps.",
        )
    return passed(check, f"{_token(student, own)} in both")


def check_chat_template(
    check: str,
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    problems: Sequence[str],
    settings: Mapping[str, Any] | None,
) -> Finding:
    """If `task.prompt` asks for a chat, both models' templates render `problems`, and as the same tokens."""
    if settings is None or settings["format"] == "plain":
        return passed(check, "prompts are plain text")
    prompts = {}
    for role, tokenizer in (("student", student), ("teacher", teacher)):
        try:
            prompts[role] = tokenize_problems(tokenizer, problems, settings)
        except UserError as error:
            return failed(
                check,
                str(error).replace("the model's tokenizer", f"the {role}'s tokenizer").rstrip("."),
                "Prompts would not be what it was trained on.",
                "",
            )
    for own, other in zip(prompts["student"], prompts["teacher"], strict=True):
        if own != other:
            place = next((i for i, pair in enumerate(zip(own, other, strict=False)) if pair[0] != pair[1]), None)
            place = min(len(own), len(other)) if place is None else place
            mine, theirs = str(student.decode(own[place : place + 8])), str(teacher.decode(other[place : place + 8]))
            return failed(
                check,
                f"the prompts differ from token {place} on: {_shown(mine)} for the student, {_shown(theirs)} for the "
                "teacher",
                "The teacher would judge answers to a prompt in a form that it was not trained on.",
                "Give both the same `chat_template` (the student's is what training uses).",
            )
    return passed(check, f"{len(problems)} problems are rendered alike")


def check_lengths(
    check: str, longest: int, max_new_tokens: int, positions: Mapping[str, int | None], left_out: int, prompts: int
) -> Finding:
    """The longest prompt and completion together fit the positions of each model (by role; None: without limit)."""
    needed = longest + max_new_tokens
    limits = {role: count for role, count in positions.items() if count is not None}
    shown = ", ".join(f"{role} {count}" for role, count in limits.items()) or "without limit"
    measured = f"prompts up to {longest} + {max_new_tokens} new tokens = {needed} positions (limits: {shown})"
    if short := [role for role, count in limits.items() if needed > count]:
        return failed(
            check,
            measured,
            f"Beyond its positions the {' and the '.join(short)} writes or scores nonsense.",
            "Lower `training.max_new_tokens` or `task.prompt.max_tokens`.",
        )
    share = left_out / max(1, left_out + prompts)
    measured += f"; {left_out} training prompts left out as too long ({share:.1%})"
    if share > MOST_LEFT_OUT:
        return warned(
            check,
            measured,
            "What is left out is not drawn at random: long problems are missing from training.",
            "Raise `task.prompt.max_tokens`.",
        )
    return passed(check, measured)


def _token(tokenizer: PreTrainedTokenizerFast, number: int | None) -> str:
    return "no token" if number is None else f"{tokenizer.convert_ids_to_tokens(number)!r} ({number})"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
