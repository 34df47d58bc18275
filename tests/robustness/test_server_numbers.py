"""Numbers and JSON from servers: only what was asked for comes through, and a server that recovers heals the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from effopd.common.errors import UserError
from raw_server import http, saying
from served_teacher import (
    COMPLETIONS,
    FIRST,
    PASSWORD,
    ROLLOUTS,
    ROWS,
    assert_retried_and_healed,
    assert_right,
    at,
    base_of,
    changed,
    checked_teacher,
    drop,
    healthy,
    one_line,
    put,
    teacher_at,
)

# --- numbers ---------------------------------------------------------------------------------------------------------

NO_LOGPROBS = [
    "null", "NaN", "Infinity", "-Infinity", "true", "false", '"-0.5"', '""', "[]", "[-0.5]", "{}", "0.5", "1", "0.001",
    "1e400", "-1e400", "-1e39", "-1e308", "-9999.0", "-9999", "1" + "0" * 400, "-1" + "0" * 400,
]  # fmt: skip


def row_of(answer: Any, position: int) -> Any:
    return answer["choices"][0]["prompt_logprobs"][position]


PLACES = {
    "the first token, sampled only": (0, "6", 3),
    "a sampled token beyond the likeliest": (2, "9", 4),
    "the likeliest token": (2, "3", 3),
    "the second likeliest token": (2, "2", 4),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("raw", NO_LOGPROBS)
def test_what_is_no_log_probability_is_refused_with_its_place(server, raw, place):
    top_k, token, position = PLACES[place]

    line = assert_retried_and_healed(
        server, "/completions", changed(put(*ROWS, position, token, "logprob"), raw), top_k
    )
    assert f'prompt_logprobs[{position}]["{token}"].logprob is ' in line


def test_rounding_above_0_is_0(server):
    server.answer = at("/completions", changed(put(*ROWS, 3, "6", "logprob"), "3e-5"), times=1)
    assert teacher_at(server).score(ROLLOUTS).logprobs[0][0] == 0


KEYS = ["-1", "x", "", " 4", "4 ", "+4", "1_0", "٤", "4.0", "04", "0x4", "9" * 30, "9" * 5000, "NaN", "\ud800"]
RANKS = ["null", "0", "-1", "1.0", "true", '"1"', "NaN", "[]"]


@pytest.mark.parametrize("key", KEYS)
def test_what_is_no_token_id_is_refused(server, key):
    bad = changed(lambda answer: row_of(answer, 3).update({key: {"logprob": -7.0, "rank": 10}}))
    assert "not a token id" in assert_retried_and_healed(server, "/completions", bad)


@pytest.mark.parametrize("raw", RANKS)
def test_what_is_no_rank_is_refused(server, raw):
    bad = changed(lambda answer: row_of(answer, 3)["3"].update(rank="@@"), raw)
    line = assert_retried_and_healed(server, "/completions", bad)
    assert "prompt_logprobs[3]['3'].rank is" in line


# --- shapes of JSON --------------------------------------------------------------------------------------------------

OTHER_KINDS = ["null", "[]", "{}", '"x"', "5", "true", "NaN", "[null]", "[[]]", '{"error": null}']


PATHS = [
    ("/completions", ()), ("/completions", ("choices",)), ("/completions", ("choices", 0)), ("/completions", ROWS),
    ("/completions", (*ROWS, 3)), ("/completions", (*ROWS, 3, "6")), ("/completions", ("model",)),
    ("/models", ()), ("/models", ("data",)), ("/models", ("data", 0)), ("/models", ("data", 0, "id")),
    ("/models", ("data", 0, "max_model_len")), ("/detokenize", ()), ("/detokenize", ("prompt",)),
]  # fmt: skip


@pytest.mark.parametrize("raw", OTHER_KINDS)
@pytest.mark.parametrize(("name", "path"), PATHS, ids=str)
def test_json_of_another_shape_is_refused(server, name, path, raw):
    bad = changed(put(*path), raw)
    server.answer = at(name, bad)
    if (name, path, raw) == ("/models", ("data", 0, "max_model_len"), "null"):
        assert_right(teacher_at(server).score(ROLLOUTS), 2)
    elif path[-1:] == ("max_model_len",) and raw == "5":
        one_line(lambda: teacher_at(server).score(ROLLOUTS), "takes 5 tokens, and a rollout has 5")
    elif (path[-1:], raw) in {(("data",), "[]"), (("id",), '"x"')}:
        one_line(lambda: teacher_at(server).score(ROLLOUTS), "for the model 'teacher', and it serves")
    elif path[-1:] == ("prompt",) and raw == '"x"':
        one_line(lambda: teacher_at(server).score(ROLLOUTS), "has another tokenizer")
    else:
        assert_retried_and_healed(server, name, bad)


def swap(answer: Any) -> None:
    row = row_of(answer, 3)
    row["3"]["rank"], row["2"]["rank"] = 2, 1


STRUCTURES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "no choices": (drop("choices"), "choices is null"),
    "no prompt_logprobs": (drop(*ROWS), "prompt_logprobs is null"),
    "no log-prob": (drop(*ROWS, 3, "6", "logprob"), ".logprob is null"),
    "no rank": (drop(*ROWS, 3, "3", "rank"), ".rank is null"),
    "not the token sent": (drop(*ROWS, 3, "6"), "lacks the token sent, 6"),
    "too few positions": (drop(*ROWS, 0), "positions, where"),
    "too many positions": (lambda a: a["choices"][0]["prompt_logprobs"].append(None), "positions, where"),
    "no positions": (lambda a: a["choices"][0]["prompt_logprobs"].clear(), "has 0 positions, where"),
    "too few of the likeliest": (drop(*ROWS, 3, "3"), None),
    "ids beyond the vocabulary": (lambda a: row_of(a, 3).update({"16": row_of(a, 3).pop("3")}), None),
    "in another order": (swap, "do not descend by rank"),
    "probabilities above 1": (lambda a: row_of(a, 3)["2"].update(logprob=-0.5), "add up to 1.21"),
    "another model": (lambda a: a.update(model="gpt"), "scores of the model 'gpt'"),
    "an error": (lambda a: {"error": {"message": "out of cheese"}}, "out of cheese"),
    "an error as text": (lambda a: {"error": "out of cheese"}, "out of cheese"),
    "an error of old servers": (lambda a: {"object": "error", "message": "out of cheese"}, "out of cheese"),
    "an error of FastAPI": (lambda a: {"detail": "out of cheese"}, "out of cheese"),
    "an error that repeats the password": (lambda a: {"error": f"no {PASSWORD} here"}, "no *** here"),
    "an error of many lines": (lambda a: {"error": "a\nb\x1b[2J\ud800" * 200}, "a b"),
}  # fmt: skip


@pytest.mark.parametrize("case", STRUCTURES)
def test_an_answer_about_something_else_is_refused(server, case):
    change, said = STRUCTURES[case]
    if said is None:  # the token sent takes the place of the one that is missing: as good, and of the right count
        server.answer = at("/completions", changed(change), times=1)
        scores = teacher_at(server).score(ROLLOUTS)
        assert scores.top_ids[0].tolist() == [[2, 6], [3, 2]]
        return
    assert said in assert_retried_and_healed(server, "/completions", changed(change))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" ",
        b"{",
        b"<html>busy</html>",
        b"\xff\xfe\x00",
        b"{}{}",
        b"[" * 10**5,
        b"1" * 5000,
        b"\x00" * 100,
        "☃".encode(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("name", ["/models", "/detokenize", "/completions"])
def test_what_is_no_json_is_refused(server, name, content):
    assert_retried_and_healed(server, name, saying(http(200, content)))


# --- anything --------------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=3))
JSON = st.recursive(
    NUMBERS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["logprob", "rank", "3", "6", "-1"]), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from(
        [path for name, path in PATHS if name == "/completions"]
        + [(*ROWS, 3, "6", "logprob"), (*ROWS, 4, "3", "logprob"), (*ROWS, 4, "2", "rank")]
    ),
    value=JSON,
)
def test_whatever_is_in_an_answer_only_right_numbers_come_through(server, place, value):
    server.answer = healthy
    teacher = checked_teacher(base_of(server))
    server.answer = at("/completions", changed(put(*place), json.dumps(value)), times=2)
    try:
        scores = teacher.score(FIRST)
    except UserError as error:
        line = str(error)
        assert "\n" not in line
        assert PASSWORD not in line
    else:
        for column in (*scores.logprobs, *scores.top_logprobs):
            assert np.isfinite(column).all()
            assert (column <= 0).all()
        assert all((ids >= 0).all() and (ids < 16).all() for ids in scores.top_ids)
        assert [len(row) for row in scores.logprobs] == [len(COMPLETIONS[0])]
