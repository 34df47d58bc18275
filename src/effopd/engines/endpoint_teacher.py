"""A teacher on another machine or GPU: a server with an OpenAI-compatible interface that gives prompt log-probs.

`vllm serve` is one. Each rollout is sent as token ids, to be completed by the one token that the interface demands:
what counts is what the server says of the tokens sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from transformers import PreTrainedTokenizerFast

from effopd.rollouts import Rollouts
from effopd.runtime.errors import UserError
from effopd.runtime.progress import say
from effopd.scoring import Scores

LONGEST_WAIT_SECONDS = 60.0
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses of a server that may answer later
SPARE_TOKENS = 1  # the completion that the interface demands


class _NotNowError(Exception):
    """No answer, or one that says to ask again later."""


class EndpointTeacher:
    """Scores rollouts by the model that an endpoint of `runtime.endpoints` serves.

    Its scores have the `top_k` likeliest tokens of each position too (0: none), of ids below `vocabulary` alone where
    rows pad it.
    """

    def __init__(
        self,
        endpoint: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerFast,
        *,
        top_k: int = 0,
        vocabulary: int | None = None,
    ) -> None:
        self.url, self.model = endpoint["url"].rstrip("/"), endpoint["model"]
        self.endpoint, self.tokenizer, self.top_k, self.vocabulary = endpoint, tokenizer, top_k, vocabulary
        self._session = requests.Session()
        self._session.mount(self.url, HTTPAdapter(pool_maxsize=endpoint["concurrency"]))
        self._checked = False

    def score(self, rollouts: Rollouts) -> Scores:
        """What the served model says of the rollouts' tokens. Raises UserError where it cannot be had."""
        if not self._checked:
            self._check(rollouts)
            self._checked = True
        texts = list(zip(rollouts.prompts, rollouts.completions, strict=True))
        pool = ThreadPoolExecutor(self.endpoint["concurrency"])
        try:
            rows = list(pool.map(lambda text: self._score_one(*text), texts))
        finally:
            pool.shutdown(cancel_futures=True)
        scores = Scores([logprobs for logprobs, _, _ in rows])
        if self.top_k:
            scores.top_ids = [ids for _, ids, _ in rows]
            scores.top_logprobs = [logprobs for _, _, logprobs in rows]
        return scores

    def _score_one(self, prompt: list[int], completion: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a completion of T tokens: log-probs float32 [T], and of its likeliest ids int32 and log-probs [T, K]."""
        answer = self._ask(
            "POST",
            f"{self.url}/completions",
            {
                "model": self.model,
                "prompt": prompt + completion,
                "max_tokens": SPARE_TOKENS,
                "temperature": 0,
                "prompt_logprobs": self.top_k,
            },
        )
        try:
            positions = answer["choices"][0]["prompt_logprobs"][len(prompt) :]
            sampled = [row[str(token)]["logprob"] for row, token in zip(positions, completion, strict=True)]
            top = [self._likeliest(row) for row in positions]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"the teacher's server at {self.url} gave no usable log-probs of the prompt ({type(error).__name__}: "
                f"{error}). Use one that knows `prompt_logprobs`, such as `vllm serve`."
            ) from None
        ids = np.array([[token for token, _ in row] for row in top], np.int32)
        logprobs = np.array([[logprob for _, logprob in row] for row in top], np.float32)
        return np.array(sampled, np.float32), ids, logprobs

    def _likeliest(self, row: Mapping[str, Any]) -> list[tuple[int, float]]:
        """The `top_k` likeliest tokens of a position, with their log-probs, likeliest first."""
        ranked = sorted((entry["rank"], int(token), entry["logprob"]) for token, entry in row.items())
        known = [(token, logprob) for _, token, logprob in ranked if token < (self.vocabulary or token + 1)]
        if len(known) < self.top_k:
            raise ValueError(f"{len(known)} tokens of the tokenizer among the {self.top_k} likeliest")
        return known[: self.top_k]

    def _check(self, rollouts: Rollouts) -> None:
        """Raise UserError where the server has not the teacher, too little room, or another tokenizer."""
        served = {entry["id"]: entry for entry in self._ask("GET", f"{self.url}/models").get("data", ())}
        if self.model not in served:
            raise UserError(
                f"config: `runtime.endpoints` asks {self.url} for the model {self.model!r}, and it serves "
                f"{', '.join(served) or 'none'}. Name one of these, or serve the teacher there."
            )
        longest = max(len(p) + len(c) for p, c in zip(rollouts.prompts, rollouts.completions, strict=True))
        room = served[self.model].get("max_model_len")
        if room is not None and longest + SPARE_TOKENS > room:
            raise UserError(
                f"the teacher's server at {self.url} takes {room} tokens, and a rollout has {longest}, with "
                f"{SPARE_TOKENS} to spare. Serve it with `--max-model-len {longest + SPARE_TOKENS}` or more."
            )
        self._check_tokenizer(rollouts.prompts[0] + rollouts.completions[0])

    def _check_tokenizer(self, tokens: list[int]) -> None:
        """Raise UserError where the server reads other text in the same token ids."""
        root = self.url.removesuffix("/v1")
        answer = self._ask("POST", f"{root}/detokenize", {"model": self.model, "tokens": tokens}, optional=True)
        if answer is None:
            say(f"the teacher's server at {self.url} cannot show its tokenizer: it is taken to be the student's")
            return
        ours, theirs = self.tokenizer.decode(tokens), answer.get("prompt")
        if theirs != ours:
            raise UserError(
                f"the teacher's server at {self.url} has another tokenizer: it reads {_start_of(theirs)} where the "
                f"student wrote {_start_of(ours)}. Serve a teacher with the student's tokenizer."
            )

    def _ask(self, method: str, address: str, body: Any = None, optional: bool = False) -> Any:
        """The JSON that the server answers with, asked again while it does not; None for what it does not know.

        Raises UserError where it does not answer, or refuses.
        """
        attempts = Retrying(
            stop=stop_after_attempt(self.endpoint["retries"] + 1),
            wait=wait_random_exponential(multiplier=self.endpoint["backoff"], max=LONGEST_WAIT_SECONDS),
            retry=retry_if_exception_type(_NotNowError),
            reraise=True,
        )
        try:
            return attempts(self._ask_once, method, address, body, optional)
        except _NotNowError as error:
            raise UserError(
                f"the teacher's server at {self.url} did not answer in {self.endpoint['retries'] + 1} attempts "
                f"({error}). Start it again, or mend `runtime.endpoints`; what was scored is kept."
            ) from None

    def _ask_once(self, method: str, address: str, body: Any, optional: bool) -> Any:
        try:
            answer = self._session.request(method, address, json=body, timeout=self.endpoint["timeout"])
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise _NotNowError(_cause_of(error)) from None
        if answer.status_code in PASSING:
            raise _NotNowError(f"status {answer.status_code}: {_said(answer)}")
        if answer.status_code == 404 and optional:
            return None
        if not answer.ok:
            raise UserError(self._refusal(answer))
        try:
            return answer.json()
        except requests.exceptions.JSONDecodeError:
            raise UserError(f"{address} did not answer in JSON. Check the `url` in `runtime.endpoints`.") from None

    def _refusal(self, answer: requests.Response) -> str:
        said = _said(answer)
        if "logprobs" in said and self.top_k:
            remedy = f"Serve it with `--max-logprobs {self.top_k}`, or lower `training.objective.top_k`."
        else:
            remedy = "Mend `runtime.endpoints`, or how it is served."
        return f"the teacher's server at {self.url} refuses (status {answer.status_code}: {said}). {remedy}"


def _said(answer: requests.Response) -> str:
    """The server's own words, on one line."""
    try:
        body = answer.json()
        text = body.get("error", body).get("message") or body.get("message") or answer.text
    except (ValueError, AttributeError):
        text = answer.text
    return " ".join(str(text).split())[:300].rstrip(".") or str(answer.reason)


def _cause_of(error: Exception) -> str:
    """A short name for a connection's failure."""
    if isinstance(error, requests.Timeout):
        return "it took too long"
    return "connection refused" if "refused" in str(error) else "connection lost"


def _start_of(text: Any) -> str:
    return repr(text if not isinstance(text, str) or len(text) <= 40 else text[:40] + "...")
