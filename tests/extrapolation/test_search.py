"""Searches trial by trial, and schedules for every number of steps."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import added_entries
from effopd.common.errors import ConfigError
from effopd.extrapolation.schedule import checkpoint_steps, powers_of_two, trigger_steps
from effopd.extrapolation.search import SearchResult, better, search


def run(kind, score, current, accept_ties=True):
    """The outcome of a search over the paper's coefficients, and the coefficients that it asked about."""
    asked = []

    def asking(coefficient):
        asked.append(coefficient)
        return score(coefficient)

    return search(kind, asking, current, [2, 4, 6, 8, 10], accept_ties), asked


@settings(deadline=None)
@given(st.integers(1, 300))
def test_triggers_at_powers_of_two_need_steps_that_are_one_and_the_remedies_do_fit(steps):
    powers = [2**n for n in range(12)]
    assert (
        powers_of_two(steps)
        == [power for power in powers if power <= steps]
        == checkpoint_steps("powers_of_two", steps)
    )
    assert trigger_steps("every_step", steps) == [step for step in range(400) if 1 <= step <= steps]
    if steps in powers:
        assert trigger_steps("powers_of_two", steps)[-1] == steps
        return
    with pytest.raises(ValueError, match="Use ") as refused:
        trigger_steps("powers_of_two", steps)
    below, above = (int(word.rstrip(",")) for word in str(refused.value).split("Use ")[1].split() if word[0].isdigit())
    assert below < steps < above == 2 * below
    assert {below, above} <= set(powers)


@settings(deadline=None)
@given(st.lists(st.integers(1, 12), max_size=5), st.integers(1, 12))
def test_a_list_of_steps_increases_and_ends_within_the_run(listed, steps):
    for function in (trigger_steps, checkpoint_steps):
        if listed == sorted(set(listed)) and all(step <= steps for step in listed):
            assert function(listed, steps) == listed
        else:
            with pytest.raises(ValueError, match=r"must increase|beyond the last step"):
                function(listed, steps)


@pytest.mark.parametrize(
    ("start", "verdicts", "asked", "coefficient"),
    [  # y: better than the best so far, n: worse
        (1, "nnnn", [1, 0.5, -0.25], 0),
        (1, "nnyn", [1, 0.5, -0.25, -0.5], -0.25),
        (1, "nnyy", [1, 0.5, -0.25, -0.5], -0.5),
        (1, "ny", [1, 0.5], 0.5),
        (1, "ynn", [1, 2, 1.5], 1),
        (1, "yny", [1, 2, 1.5], 1.5),
        (1, "yynn", [1, 2, 4, 3], 2),
        (1, "yyyny", [1, 2, 4, 8, 6], 6),
        (8, "nny", [8, 4, 2], 2),
        (8, "nnnnny", [8, 4, 2, 1, 0.5, -0.25, -0.5], -0.25),
        (0.75, "nny", [0.75, 0.375, -0.25, -0.5], -0.25),
        (0.5, "nn", [0.5, -0.25], 0),
        (768, "yny", [768, 1536, 1152], 1152),
        (512, "yy", [512, 1024], 1024),
        (512, "ynn", [512, 1024, 768], 512),
    ],
)
def test_the_order_of_a_line_search_after_every_kind_of_rejection(start, verdicts, asked, coefficient):
    """Nothing but the verdicts decides what is tried next; verdicts that are not given are rejections."""
    tried, best = [], 0.0

    def score(candidate):
        nonlocal best
        better = verdicts[len(tried) : len(tried) + 1] == "y"
        tried.append(candidate)
        best += better
        return best if better else best - 1

    outcome = search("line", score, 0.0, [], False, start)
    assert tried == asked
    assert outcome.coefficient == coefficient
    assert [trial.coefficient for trial in outcome.trials] == asked
    assert [trial.accepted for trial in outcome.trials] == [v == "y" for v in verdicts.ljust(len(asked), "n")][
        : len(asked)
    ]


@pytest.mark.parametrize(
    ("kind", "score", "reason"),
    [
        ("first_failure", lambda c: c, "every coefficient was accepted"),
        ("first_failure", lambda c: -abs(c - 4), "6 was rejected"),
        ("all", lambda c: -abs(c - 6), "the best of all"),
        ("all", lambda c: -20.0, "no candidate was accepted"),
        ("line", lambda c: c, "the longest step was accepted"),
        ("line", lambda c: -abs(c - 4), "8 was rejected"),
        ("line", lambda c: -abs(c - 0.5), "1 was rejected, 0.5 accepted"),
        ("line", lambda c: -abs(c + 0.4), "forward was rejected, back accepted"),
        ("line", lambda c: -20.0, "no candidate was accepted"),
    ],
)
def test_a_search_says_why_it_ended(kind, score, reason):
    current = -0.45 if reason.startswith(("1 ", "forward")) else -10.0
    assert run(kind, score, current)[0].reason == reason


def test_a_score_displaces_another_only_where_both_are_numbers_and_a_tie_only_where_ties_are_accepted():
    assert [better(value, 1.0, False) for value in (0.5, 1.0, 1.5)] == [False, False, True]
    assert [better(value, 1.0, True) for value in (0.5, 1.0, 1.5)] == [False, True, True]
    for broken in (math.nan, math.inf, -math.inf):
        for accept_ties in (False, True):
            assert not better(broken, 1.0, accept_ties)
            assert not better(1.0, broken, accept_ties)
            assert not better(broken, broken, accept_ties)


@pytest.mark.parametrize("kind", ["first_failure", "all", "line"])
def test_a_decision_that_rests_on_something_has_no_warning_and_one_on_nothing_says_why(kind):
    for accept_ties in (False, True):
        assert run(kind, lambda c: -abs(c - 2), -2.0, accept_ties)[0].warning == ""
        assert run(kind, lambda c: -1.0, 0.0, accept_ties)[0].warning == ""
        outcome, asked = run(kind, lambda c: 1.0, math.nan, accept_ties)
        assert (asked, outcome.trials, outcome.coefficient) == ([], [], 0)
        assert outcome.reason == "the score of the current weights is not finite"
        assert outcome.warning == f"nothing is extrapolated: {outcome.reason}"
    assert SearchResult([], 0.0, "for no reason").warning == ""
    flat, _ = run(kind, lambda c: 0.5, 0.5, True)
    assert flat.warning == (
        "every candidate scores the same as the current weights (0.5), and ties are accepted. Write accept_ties: false, or have "
        "the gate ask more."
        if kind != "line"
        else ""
    )
    assert run(kind, lambda c: 0.5, 0.5, False)[0].warning == ""


def test_a_line_search_that_is_told_nothing_starts_at_one_and_an_unknown_search_is_refused():
    assert run("line", lambda c: -1.0, 0.0)[1] == [1.0, 0.5, -0.25]
    with pytest.raises(ConfigError, match="there is no search 'square'. Name one of: first_failure, all, line, "):
        run("square", lambda c: 1.0, 0.0)


def test_a_search_of_another_package_is_given_its_options_and_the_start(monkeypatch):
    added_entries.add(monkeypatch, "searches")
    found = search("every", lambda c: -c, -9.0, [1, 2, 3, 4, 5], False, 8.0, {"stride": 2})
    assert [trial.coefficient for trial in found.trials] == [8, 1, 3, 5]
    assert (found.coefficient, found.reason) == (1, "one of 2")
