"""Coefficients by module, on a score that can be worked out by hand."""

import math

import pytest

from effopd.extrapolation.modules import by_module, refine
from effopd.extrapolation.search import SearchResult, Trial


def test_parameters_are_of_attention_of_an_mlp_or_other():
    names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"]
    assert by_module(names) == {"attention": [names[1]], "mlp": [names[2]], "other": [names[0]]}
    assert by_module(names[:1]) == {"other": names[:1]}


def ended(coefficient, score):
    """A line search that ended with this coefficient, after one that was no better."""
    return SearchResult([Trial(coefficient, score, True), Trial(2 * coefficient, score - 1, False)], coefficient, "")


def distance(best):
    """A score that is highest at these coefficients."""
    return lambda trial: -sum(abs(math.log(trial[module] / best[module])) for module in best)


def test_each_module_is_scaled_in_turn_where_that_is_better():
    score = distance({"attention": 3.0, "mlp": 4.0, "other": 7.0})
    modules = ("attention", "mlp", "other")
    found, tried = refine(score, ended(4.0, score(dict.fromkeys(modules, 4.0))), modules, False)
    assert found == {"attention": 4 * 2 / 3, "mlp": 4.0, "other": 4 * 3 / 2}
    assert tried == 2 + 2 + 1  # longer fails and shorter helps; both fail; longer helps


def test_a_longer_step_is_tried_before_a_shorter_one_and_the_first_that_is_better_is_taken():
    asked = []

    def score(trial):
        asked.append((trial["attention"], trial["mlp"]))
        return float(len(asked))  # each is better than all before it

    found, tried = refine(score, ended(6.0, 0.0), ("attention", "mlp"), False)
    assert asked == [(9.0, 6.0), (9.0, 9.0)]
    assert (found, tried) == ({"attention": 9.0, "mlp": 9.0}, 2)
    asked.clear()
    found, tried = refine(lambda trial: (score(trial), -1.0)[1], ended(6.0, 0.0), ("attention", "mlp"), False)
    assert asked == [(9.0, 6.0), (4.0, 6.0), (6.0, 9.0), (6.0, 4.0)]
    assert (found, tried) == ({"attention": 6.0, "mlp": 6.0}, 4)


@pytest.mark.parametrize(("accept_ties", "taken"), [(False, 6.0), (True, 4.0)])
def test_a_tie_with_the_last_accepted_score_shortens_a_step_only_where_ties_are_accepted(accept_ties, taken):
    line = SearchResult([Trial(3.0, 0.5, True), Trial(6.0, 1.0, True), Trial(12.0, 0.0, False)], 6.0, "")
    assert refine(lambda trial: 1.0, line, ["mlp"], accept_ties)[0] == {"mlp": taken}


def test_a_score_that_is_no_number_is_never_accepted():
    for score in (-math.inf, math.inf, math.nan):
        found, tried = refine(lambda trial, score=score: score, ended(2.0, -1.0), ("attention", "mlp"), True)
        assert (found, tried) == ({"attention": 2.0, "mlp": 2.0}, 4)


def test_a_tie_lengthens_no_step_of_a_module():
    for accept_ties, wanted in ((False, 3.0), (True, 2.0)):
        found = refine(lambda trial: -1.0, ended(3.0, -1.0), ("attention", "mlp"), accept_ties)
        assert found == ({"attention": wanted, "mlp": wanted}, 4)


def test_a_step_back_is_scaled_like_a_step_forward():
    found, _ = refine(lambda trial: -trial["mlp"], ended(-0.5, 0.5), ["mlp"], False)
    assert found == {"mlp": -0.75}


def test_where_the_line_search_accepted_nothing_no_module_is_tried():
    none = SearchResult([Trial(1.0, -2.0, False)], 0.0, "no candidate was accepted")
    assert refine(lambda trial: 9.0, none, ["mlp"], False) == ({"mlp": 0.0}, 0)
