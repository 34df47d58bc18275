"""A teacher behind a RawServer: healthy answers, ways to spoil them, and how a client of them has to end."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from effopd.common.errors import UserError
from effopd.data.rollouts import Rollouts
from effopd.tasks.base import build_task
from effopd.teachers.endpoint import EndpointTeacher
from effopd.teachers.scoring import Scores
from raw_server import Answer, RawServer, http
from tiny_models import TASK_SECTION

PROMPTS, COMPLETIONS = [[5, 8, 3], [9, 4]], [[6, 9], [7, 2, 1]]
ROLLOUTS = Rollouts(PROMPTS, COMPLETIONS, [np.zeros(len(c), np.float32) for c in COMPLETIONS], [False, True])
FIRST = ROLLOUTS.select([0])
LIKELIEST = {3: -0.5, 2: -1.5, 7: -2.5}  # at every position
OTHER = -6.25  # the log-prob of any other token
PASSWORD = "sesame-open"
HERE = '"@@"'  # where a case puts its own JSON


TOKENIZER = build_task(TASK_SECTION).make_tokenizer()


def scores_of(tokens: list[int], top_k: int) -> list[Any]:
    """`prompt_logprobs` as vLLM gives them."""
    likeliest = list(LIKELIEST.items())
    rows: list[Any] = [None]
    for token in tokens[1:]:
        row = {str(t): {"logprob": p, "rank": rank} for rank, (t, p) in enumerate(likeliest[:top_k], 1)}
        rank = list(LIKELIEST).index(token) + 1 if token in LIKELIEST else 9
        row[str(token)] = {"logprob": LIKELIEST.get(token, OTHER), "rank": rank, "decoded_token": "x"}
        rows.append(row)
    return rows


def body_for(path: str, body: Any) -> Any:
    """What a healthy server says, before it is JSON."""
    if path.endswith("/models"):
        return {"data": [{"id": "teacher", "max_model_len": 64, "root": "/m"}, {"id": "alias", "root": "/m"}]}
    if path.endswith("/detokenize"):
        return {"prompt": TOKENIZER.decode(body["tokens"])}
    return {"model": "alias", "choices": [{"prompt_logprobs": scores_of(body["prompt"], body["prompt_logprobs"])}]}


def healthy(connection: socket.socket, path: str, body: Any) -> None:
    connection.sendall(http(200, json.dumps(body_for(path, body))))


def at(name: str, bad: Answer, times: int = 10**9) -> Answer:
    """A server that is healthy but for the first `times` requests of paths that end in `name`."""
    left = itertools.count(times, -1)

    def answer(connection: socket.socket, path: str, body: Any) -> None:
        ill = path.endswith(name) and next(left) > 0
        (bad if ill else healthy)(connection, path, body)

    return answer


def changed(change: Callable[[Any], Any], raw: str = "null") -> Answer:
    """A healthy answer changed in one place, or replaced; `HERE` in it becomes the JSON text `raw`."""

    def answer(connection: socket.socket, path: str, body: Any) -> None:
        content = body_for(path, body)
        replaced = change(content)
        connection.sendall(http(200, json.dumps(content if replaced is None else replaced).replace(HERE, raw)))

    return answer


def base_of(server: RawServer) -> str:
    return f"{server.url.replace('//', f'//me:{PASSWORD}@')}/v1"


def teacher_at(server: RawServer | str, top_k: int = 2, **options: Any) -> EndpointTeacher:
    url = server if isinstance(server, str) else base_of(server)
    endpoint = {"url": url, "model": "teacher", "timeout": 10.0, "retries": 1, "backoff": 0.001, "concurrency": 1}
    return EndpointTeacher(endpoint | options, TOKENIZER, top_k=top_k, vocabulary=16)


def assert_right(scores: Scores, top_k: int) -> None:
    for completion, logprobs in zip(COMPLETIONS, scores.logprobs, strict=True):
        assert logprobs.dtype == np.float32
        np.testing.assert_array_equal(logprobs, [LIKELIEST.get(token, OTHER) for token in completion])
    for ids, logprobs in zip(scores.top_ids, scores.top_logprobs, strict=True):
        assert (ids == list(LIKELIEST)[:top_k]).all()
        assert (logprobs == list(LIKELIEST.values())[:top_k]).all()
    assert len(scores.top_ids) == (len(COMPLETIONS) if top_k else 0)


def one_line(ask: Callable[[], Any], *words: str) -> str:
    """Assert that asking ends in one clear line, without the password, that contains all `words`."""
    with pytest.raises(UserError) as caught:
        ask()
    line = str(caught.value)
    assert line.isprintable(), line
    assert PASSWORD not in line
    assert 20 < len(line) < 700, line
    for word in words:
        assert word in line, line
    return line


@cache
def checked_teacher(url: str, top_k: int = 2) -> EndpointTeacher:
    """A teacher that has looked at the server's models and tokenizer already, while it was healthy."""
    teacher = teacher_at(url, top_k)
    teacher.score(ROLLOUTS)
    return teacher


def assert_retried_and_healed(server: RawServer, name: str, bad: Answer, top_k: int = 2) -> str:
    """A server that stays ill ends in one line after all attempts, and one that recovers gives the right scores."""

    def teacher() -> EndpointTeacher:
        return checked_teacher(base_of(server), top_k) if name == "/completions" else teacher_at(server, top_k)

    server.answer = healthy
    teacher()
    server.answer = at(name, bad)
    server.paths.clear()
    line = one_line(lambda: teacher().score(FIRST), "in 2 attempts", server.url)
    assert server.asked(name) == 2
    server.answer = at(name, bad, times=1)
    assert_right(teacher().score(ROLLOUTS), top_k)
    return line


def put(*path: Any) -> Callable[[Any], Any]:
    """Replaces the value at a path of an answer."""

    def change(answer: Any) -> Any:
        if not path:
            return "@@"
        for key in path[:-1]:
            answer = answer[key]
        answer[path[-1]] = "@@"
        return None

    return change


def drop(*path: Any) -> Callable[[Any], None]:
    """Takes out the value at a path of an answer."""

    def change(answer: Any) -> None:
        for key in path[:-1]:
            answer = answer[key]
        del answer[path[-1]]

    return change


ROWS = ("choices", 0, "prompt_logprobs")
