"""Chats: problems as a user's messages, rendered by the chat template that a tokenizer brings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from effopd.common.errors import UserError
from effopd.common.formatting import shortened

# What a template is tried with, since a real problem may be as short as what a template holds anyway.
QUESTION, ANSWER = "Which is larger, 6391 or 2748?", "It is 6391."
PART = re.compile(r"""["']type["']: *["']text["']""")  # a part that was written out as it is, not read
PLAIN = "set `task.prompt.format` to plain, or correct the tokenizer's `chat_template`"
WITHOUT_EXAMPLES = "leave `task.prompt.examples` empty"
WITHOUT_SYSTEM = 'set `task.prompt.system` to "" and write what it says into `task.prompt.template`'


def render_chats(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    system: str,
    thinking: bool,
    turns: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """Each text as a user's message, after the system message if there is one, ready for the assistant's turn.

    `turns` are messages of user and assistant between the two, the same in all chats.

    The content of messages is text or, for templates that only read it so, a list with one part of type `text`.
    Raises UserError if the tokenizer's template refuses a chat, leaves a message out or changes it, or does not begin
    the assistant's turn.
    """
    whose = "the chat template of the model's tokenizer"
    names = tokenizer.chat_template
    if not names:
        raise UserError(
            "`task.prompt.format` is chat, and the model's tokenizer has no chat template. Set it to plain, or take a "
            "model that was trained to chat."
        )
    if isinstance(names, dict) and "default" not in names:
        raise UserError(
            f"the model's tokenizer has several chat templates ({', '.join(names)}), and none is named `default`. "
            f"Rename one, or {PLAIN}."
        )
    forms = [_Chats(tokenizer, system, thinking, turns, in_parts) for in_parts in (False, True)]
    faults = []
    for form in forms:
        if not (found := form.fault()):
            break
        faults.append(found)
    else:
        raise UserError(f"{whose} {max(faults)[1]}.")  # of the form that came further
    try:
        rendered = form.render([form.chat(text) for text in texts])
    except Exception as error:  # the template is a program that came with the model
        raise UserError(f"{whose} refuses a problem ({_first_line(error)}). To use it, {PLAIN}.") from error
    for text, shown in zip(texts, rendered, strict=True):
        if text.strip() not in shown:
            raise UserError(
                f"{whose} leaves out or changes the problem {shortened(repr(text), 80)}. To ask it, {PLAIN}."
            )
    return rendered


class _Chats:
    """Chats with a system message and example turns, if there are any, in one of the forms that content can have."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        system: str,
        thinking: bool,
        turns: Sequence[tuple[str, str]],
        in_parts: bool,
    ) -> None:
        self.tokenizer, self.system, self.thinking, self.in_parts = tokenizer, system, thinking, in_parts
        self.turns = turns

    def chat(self, question: str, answer: str = "") -> list[dict[str, Any]]:
        exchanges = [*self.turns, (question, answer)]
        said = [(role, text) for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)]
        return [
            {"role": role, "content": [{"type": "text", "text": text}] if self.in_parts else text}
            for role, text in [("system", self.system), *said]
            if text
        ]

    def render(self, chats: list[list[dict[str, Any]]], ready: bool = True) -> list[str]:
        """The text of chats, with the beginning of the assistant's turn if `ready`."""
        rendered: Any = self.tokenizer.apply_chat_template(
            chats, tokenize=False, add_generation_prompt=ready, enable_thinking=self.thinking
        )
        return list(rendered)

    def fault(self) -> tuple[int, str] | None:
        """What is wrong with a chat in this form, and how far it came; None if nothing is."""
        try:
            (shown,) = self.render([self.chat(QUESTION)])
        except Exception as error:
            remedies = [WITHOUT_EXAMPLES] * bool(self.turns) + [WITHOUT_SYSTEM] * bool(self.system) + [PLAIN]
            return 0, f"refuses the prompt ({_first_line(error)}). To use this model, {'; or '.join(remedies)}"
        if QUESTION not in shown or (self.in_parts and PART.search(shown)):
            return 1, f"leaves the problem out of the prompt. To use this model, {PLAIN}"
        if self.system.strip() not in shown:
            return 2, f"leaves out the system message. To use this model, {WITHOUT_SYSTEM}"
        if left_out := next((text for turn in self.turns for text in turn if text.strip() not in shown), None):
            what = shortened(repr(left_out), 80)
            return 3, f"leaves out or changes {what} of the examples. To use this model, {WITHOUT_EXAMPLES}; or {PLAIN}"
        if not self._begins_answer(shown):
            return 4, f"does not begin the assistant's turn (`add_generation_prompt`). To use this model, {PLAIN}"
        return None

    def _begins_answer(self, shown: str) -> bool:
        """Whether a prompt ends with what a whole conversation has between question and answer."""
        try:
            (waiting,) = self.render([self.chat(QUESTION)], ready=False)
            (answered,) = self.render([self.chat(QUESTION, ANSWER)], ready=False)
        except Exception:  # it takes no assistant's turns
            return True
        between, found, _ = answered.rpartition(QUESTION)[2].partition(ANSWER)
        return shown != waiting or not found or between.strip() in shown.rpartition(QUESTION)[2]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return shortened(lines[0], 200) if lines else type(error).__name__
