"""Coefficients by module, on a score that can be worked out by hand."""

import math
import operator

from effopd.extrapolation.modules import by_module, refine


def test_parameters_are_of_attention_of_an_mlp_or_other():
    names = ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.up_proj.weight"]
    assert by_module(names) == {"attention": [names[1]], "mlp": [names[2]], "other": [names[0]]}
    assert by_module(names[:1]) == {"other": names[:1]}


def distance(best):
    """A score that is highest at these coefficients."""
    return lambda trial: -sum(abs(math.log(trial[module] / best[module])) for module in best)


def test_each_module_is_scaled_in_turn_where_that_is_better():
    score = distance({"attention": 3.0, "mlp": 4.0, "other": 7.0})
    start = dict.fromkeys(("attention", "mlp", "other"), 4.0)
    found, tried = refine(score, start, score(start), operator.gt)
    assert found == {"attention": 4 * 2 / 3, "mlp": 4.0, "other": 4 * 3 / 2}
    assert tried == 2 + 2 + 1  # longer fails and shorter helps; both fail; longer helps
    assert start == dict.fromkeys(start, 4.0)


def test_a_score_that_is_no_number_is_never_accepted():
    start = {"attention": 2.0, "mlp": 2.0}
    found, tried = refine(lambda trial: -math.inf, start, -1.0, operator.gt)
    assert (found, tried) == (start, 4)


def test_a_step_back_is_scaled_like_a_step_forward():
    found, _ = refine(lambda trial: -trial["mlp"], {"mlp": -0.5}, 0.5, operator.gt)
    assert found == {"mlp": -0.75}
