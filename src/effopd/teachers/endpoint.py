"""A teacher on another machine or GPU: a server with an OpenAI-compatible interface that gives prompt log-probs.

`vllm serve` is one. Each rollout is sent as token ids, to be completed by the one token that the interface demands:
what counts is what the server says of the tokens sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from effopd.common.errors import UserError
from effopd.common.progress import say
from effopd.data.checked_numbers import NumberError, likeliest, logprobs, shown, token_id, whole
from effopd.data.rollouts import Rollouts
from effopd.teachers.http_client import LARGEST_ANSWER, AnswerError, JsonClient, remark
from effopd.teachers.scoring import Scores

SPARE_TOKENS = 1  # the completion that the interface demands
BYTES_AN_ENTRY = 512  # at most, of a token at a position: its id, log-prob, rank and text
MINUS_INFINITY = -9999.0  # which vLLM writes for it

Kind = TypeVar("Kind", dict[str, Any], list[Any], str)


class EndpointTeacher:
    """Scores rollouts by the model that an endpoint of `runtime.endpoints` serves.

    Its scores have the `top_k` likeliest tokens of each position too (0: none), of ids below `vocabulary` alone where
    rows pad it. Raises ConfigError if the endpoint's URL is not one.
    """

    def __init__(
        self,
        endpoint: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerFast,
        *,
        top_k: int = 0,
        vocabulary: int | None = None,
    ) -> None:
        self.client = JsonClient("the teacher's server", endpoint)
        self.url, self.model, self.concurrency = self.client.url, endpoint["model"], endpoint["concurrency"]
        self.tokenizer, self.top_k, self.vocabulary = tokenizer, top_k, vocabulary
        self._names: set[str] = set()  # by which the server calls the teacher; empty before it was checked

    def score(self, rollouts: Rollouts) -> Scores:
        """What the served model says of the rollouts' tokens. Raises UserError if it cannot be had."""
        if not self._names:
            self._names = self._check(rollouts)
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            asked = [
                pool.submit(self._score_one, prompt, completion)
                for prompt, completion in zip(rollouts.prompts, rollouts.completions, strict=True)
            ]
            done, _ = wait(asked, return_when=FIRST_EXCEPTION)
            if failures := [error for one in done if (error := one.exception())]:
                raise failures[0]
        finally:  # without waiting for the others if one has failed
            self.client.give_up()
            pool.shutdown(wait=False, cancel_futures=True)
        sampled, ids, top = zip(*(one.result() for one in asked), strict=True)
        return Scores(list(sampled), list(ids), list(top)) if self.top_k else Scores(list(sampled))

    def _score_one(self, prompt: list[int], completion: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a completion of T tokens: log-probs float32 [T], and of its likeliest ids int32 and log-probs [T, K]."""
        tokens = prompt + completion
        scored = self.client.ask(
            "POST",
            f"{self.url}/completions",
            {
                "model": self.model,
                "prompt": tokens,
                "max_tokens": SPARE_TOKENS,
                "temperature": 0,
                "prompt_logprobs": self.top_k,
            },
            read=lambda answer: self._read_scores(answer, len(prompt), tokens),
            largest=LARGEST_ANSWER + BYTES_AN_ENTRY * len(tokens) * (self.top_k + 1),
            hints=self._hints(),
        )
        assert scored is not None
        return scored

    def _read_scores(self, answer: Any, start: int, tokens: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The scores of tokens[start:] in an answer, all of it checked. Raises AnswerError or NumberError."""
        sampled, ids, top = [], [], []
        for position, row in self._positions(answer, start, len(tokens)):
            token, place = str(tokens[position]), f"prompt_logprobs[{position}]"
            if token not in row:
                raise AnswerError(f"{place} lacks the token sent, {token}")
            sampled.append(_part(row[token], f'{place}["{token}"]', dict).get("logprob"))
            if self.top_k:
                best = self._likeliest(row, place)
                ids.append([token for token, _ in best])
                top += [logprob for _, logprob in best]

        def place_of(position: int, token: int) -> str:
            return f'prompt_logprobs[{start + position}]["{token}"].logprob'

        scores = _finite(sampled, lambda i: place_of(i, tokens[start + i]))
        best_scores = _finite(top, lambda i: place_of(i // self.top_k, ids[i // self.top_k][i % self.top_k]))
        best_scores = best_scores.reshape(len(sampled), self.top_k)
        likeliest(best_scores, lambda row: f"prompt_logprobs[{start + row}]")
        return scores, np.array(ids, np.int32).reshape(best_scores.shape), best_scores

    def _positions(self, answer: Any, start: int, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """The positions in an answer about `count` tokens, from `start` on, and what it says of each."""
        if isinstance(answer, dict) and "choices" not in answer and (said := remark(answer)):
            raise AnswerError(f"an error with a status that says otherwise: {said}")
        model = _part(_part(answer, "the answer", dict).get("model", self.model), "model", str)
        if model not in self._names:
            raise AnswerError(f"scores of the model {shown(model)}, where {self.model!r} was asked")
        choices = _part(answer.get("choices"), "choices", list)
        choice = _part(choices[0] if choices else None, "choices[0]", dict)
        rows = _part(choice.get("prompt_logprobs"), "prompt_logprobs", list)
        if len(rows) != count:
            raise AnswerError(f"prompt_logprobs has {len(rows)} positions, where {count} tokens were sent")
        for position in range(start, count):
            yield position, _part(rows[position], f"prompt_logprobs[{position}]", dict)

    def _likeliest(self, row: Mapping[str, Any], place: str) -> list[tuple[int, Any]]:
        """The `top_k` likeliest tokens of a position, with their log-probs as they came, likeliest first."""
        ranked = []
        for key, entry in row.items():
            token, rank = token_id(key, place), entry.get("rank") if isinstance(entry, dict) else None
            if type(rank) is not int or rank < 1:
                where = f"{place}[{shown(key)}]"
                whole(_part(entry, where, dict).get("rank"), f"{where}.rank", least=1)
            ranked.append((rank, token, entry.get("logprob")))
        ranked.sort(key=lambda one: one[:2])
        known = [(token, logprob) for _, token, logprob in ranked if token < (self.vocabulary or token + 1)]
        if len(known) < self.top_k:
            raise AnswerError(f"{place} has {len(known)} tokens of the tokenizer among the {self.top_k} likeliest")
        return known[: self.top_k]

    def _hints(self) -> dict[str, str]:
        if not self.top_k:
            return {}
        return {"logprobs": f"Serve it with `--max-logprobs {self.top_k}`, or lower `training.objective.top_k`."}

    def _check(self, rollouts: Rollouts) -> set[str]:
        """The names by which the server calls the teacher.

        Raises UserError if it does not have the teacher, has too little room, or another tokenizer.
        """
        served = self.client.ask("GET", f"{self.url}/models", read=_models)
        assert served is not None
        if self.model not in served:
            raise UserError(
                f"config: `runtime.endpoints` asks {self.url} for the model {self.model!r}, and it serves "
                f"{', '.join(served) or 'none'}. Name one of these, or serve the teacher there."
            )
        longest = max(len(p) + len(c) for p, c in zip(rollouts.prompts, rollouts.completions, strict=True))
        own = served[self.model]
        room = own.get("max_model_len")
        if room is not None and longest + SPARE_TOKENS > room:
            raise UserError(
                f"the teacher's server at {self.url} takes {room} tokens, and a rollout has {longest}, with "
                f"{SPARE_TOKENS} to spare. Serve it with `--max-model-len {longest + SPARE_TOKENS}` or more."
            )
        self._check_tokenizer(rollouts.prompts[0] + rollouts.completions[0])
        # one model can be served under several names, of which vLLM puts the first into its answers
        root = own.get("root")
        return {self.model} | {name for name, one in served.items() if root is not None and one.get("root") == root}

    def _check_tokenizer(self, tokens: list[int]) -> None:
        """Raise UserError if the server reads other text in the same token ids."""
        theirs = self.client.ask(
            "POST",
            f"{self.url.removesuffix('/v1')}/detokenize",
            {"model": self.model, "tokens": tokens},
            read=lambda answer: _part(_part(answer, "the answer", dict).get("prompt"), "prompt", str),
            optional=True,
        )
        if theirs is None:
            say(f"the teacher's server at {self.url} cannot show its tokenizer: it is taken to be the student's")
        elif theirs != (ours := self.tokenizer.decode(tokens)):
            raise UserError(
                f"the teacher's server at {self.url} has another tokenizer: it reads {shown(theirs)} where the "
                f"student wrote {shown(ours)}. Serve a teacher with the student's tokenizer."
            )


def _part(value: Any, place: str, kind: type[Kind]) -> Kind:
    """A part of an answer, which has to be of a kind. Raises AnswerError if it is not."""
    if not isinstance(value, kind):
        raise AnswerError(f"{place} is {shown(value)}, not {_KINDS[kind]}")
    return value


_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "text"}


def _finite(values: list[Any], place: Any) -> np.ndarray:
    """Checked log-probs, float32, none of which stands for minus infinity."""
    found = logprobs(values, place)
    if (found <= MINUS_INFINITY).any():
        position = int(np.flatnonzero(found <= MINUS_INFINITY)[0])
        raise NumberError(f"{place(position)} is {shown(values[position])}, which stands for minus infinity")
    return found


def _models(answer: Any) -> dict[str, dict[str, Any]]:
    """The models in an answer about them, by their ids. Raises AnswerError or NumberError if there is no such list."""
    served = {}
    for number, one in enumerate(_part(_part(answer, "the answer", dict).get("data"), "data", list)):
        entry = _part(one, f"data[{number}]", dict)
        if entry.get("max_model_len") is not None:
            whole(entry["max_model_len"], f"data[{number}].max_model_len", least=1)
        served[_part(entry.get("id"), f"data[{number}].id", str)] = entry
    return served
