"""Extrapolation: schedule, candidates and searches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effopd.common.errors import ConfigError
from effopd.extrapolation.candidates import candidate, delta_norms, moving_or_refuse, moving_parameters
from effopd.extrapolation.schedule import checkpoint_steps, powers_of_two, trigger_steps
from effopd.extrapolation.search import LONGEST_STEP, first_step, search

COEFFICIENTS = [2, 4, 6, 8, 10]


def test_triggers():
    assert powers_of_two(16) == [1, 2, 4, 8, 16]
    assert powers_of_two(20) == [1, 2, 4, 8, 16]
    assert trigger_steps("powers_of_two", 8) == [1, 2, 4, 8]
    assert trigger_steps("none", 7) == []
    assert trigger_steps([3, 5], 9) == [3, 5]
    with pytest.raises(ValueError, match="it is 48. Use 32 or 64, or list the triggers"):
        trigger_steps("powers_of_two", 48)
    with pytest.raises(ValueError, match="12 is beyond the last step"):
        trigger_steps([4, 12], 8)
    with pytest.raises(ValueError, match="must increase"):
        trigger_steps([4, 4], 8)


def test_kept_steps():
    assert checkpoint_steps("powers_of_two", 48) == [1, 2, 4, 8, 16, 32]
    assert checkpoint_steps([3, 5], 9) == [3, 5]
    assert checkpoint_steps([], 9) == []
    with pytest.raises(ValueError, match="12 is beyond the last step"):
        checkpoint_steps([4, 12], 8)


def checkpoints(dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    names = {
        "model.embed_tokens.weight": (7, 4),
        "model.layers.0.self_attn.q_proj.weight": (4, 4),
        "model.layers.0.self_attn.q_norm.weight": (4,),
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.layers.0.input_layernorm.weight": (4,),
        "model.layers.0.post_attention_layernorm.weight": (4,),
        "model.norm.weight": (4,),
        "lm_head.weight": (7, 4),
    }
    return [{n: torch.randn(s, generator=rng).to(dtype) for n, s in names.items()} for _ in range(2)]


def test_candidates_equal_numpy_in_float32_and_move_only_what_should():
    current, anchor = checkpoints()
    moving = moving_parameters(current, "attention_mlp")
    assert moving == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
    ]
    made = candidate(current, anchor, 6.0, moving)
    for name in current:
        w, a = current[name].numpy(), anchor[name].numpy()
        wanted = w + (w - a) * np.float32(6) if name in moving else w
        assert wanted.dtype == np.float32
        np.testing.assert_array_equal(made[name].numpy(), wanted)
    assert moving_parameters(current, "all") == list(current)
    assert moving_parameters(current, "lm_head|embed") == ["model.embed_tokens.weight", "lm_head.weight"]


def test_coefficient_zero_is_the_current_weights_and_minus_one_the_anchor():
    current, anchor = checkpoints()
    moving = list(current)
    for name, tensor in candidate(current, anchor, 0.0, moving).items():
        assert torch.equal(tensor, current[name])
    for name, tensor in candidate(current, anchor, -1.0, moving).items():
        torch.testing.assert_close(tensor, anchor[name])
    norms = delta_norms(current, anchor, moving[:2])
    flat = torch.cat([(current[n] - anchor[n]).flatten() for n in current])
    assert norms["all"] == pytest.approx(flat.norm().item(), rel=1e-6)
    assert norms["moving"] < norms["all"]


def test_mismatched_checkpoints_are_refused_by_name():
    current, anchor = checkpoints()
    with pytest.raises(ValueError, match="differ in their parameters: lm_head.weight"):
        candidate(current, {n: t for n, t in anchor.items() if n != "lm_head.weight"}, 1.0, list(current))
    with pytest.raises(ValueError, match=r"model.norm.weight is \(4,\) in one checkpoint, \(5,\) in the other"):
        candidate(current, anchor | {"model.norm.weight": torch.zeros(5)}, 1.0, list(current))
    with pytest.raises(ValueError, match="extrapolate float32 master weights only"):
        candidate(*checkpoints(torch.bfloat16), 1.0, ["model.norm.weight"])
    with pytest.raises(ValueError, match="matches no parameter"):
        moving_parameters(current, "experts")
    with pytest.raises(ValueError, match="is not a regular expression"):
        moving_parameters(current, "(")


def test_parameters_that_a_configuration_asks_for_are_those_or_one_line():
    names = list(checkpoints()[0])
    for which in ("attention_mlp", "all", "lm_head|embed"):
        assert moving_or_refuse(names, which) == moving_parameters(names, which)
    with pytest.raises(ConfigError, match="config: `extrapolation.parameters`: 'experts' matches no parameter"):
        moving_or_refuse(names, "experts")


@pytest.mark.parametrize("narrow", ["current", "anchor", "both"])
def test_weights_of_which_either_was_rounded_are_refused(narrow):
    current, anchor = checkpoints()
    for weights, name in ((current, "current"), (anchor, "anchor")):
        if narrow in (name, "both"):
            weights["model.norm.weight"] = weights["model.norm.weight"].bfloat16()
    for function in (lambda: candidate(current, anchor, 1.0, []), lambda: delta_norms(current, anchor, [])):
        with pytest.raises(ValueError, match="model.norm.weight is torch.*extrapolate float32 master weights only"):
            function()


def run(kind, values, current, accept_ties=True, coefficients=COEFFICIENTS):
    asked = []

    def score(coefficient):
        asked.append(coefficient)
        return values(coefficient) if callable(values) else values[coefficients.index(coefficient)]

    return search(kind, score, current, coefficients, accept_ties), asked


def test_first_failure_stops_at_the_first_rejection():
    outcome, asked = run("first_failure", [0.5, 0.6, 0.55, 0.9, 0.9], 0.5)
    assert (outcome.coefficient, asked, outcome.reason) == (4, [2, 4, 6], "6 was rejected")
    assert [t.accepted for t in outcome.trials] == [True, True, False]
    outcome, asked = run("first_failure", [0.5, 0.6, 0.55, 0.9, 0.9], 0.5, accept_ties=False)
    assert (outcome.coefficient, asked, outcome.reason) == (0, [2], "no candidate was accepted")
    assert run("first_failure", [1, 2, 3, 4, 5], 0)[0].coefficient == 10


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1), st.sampled_from([True, False]))
def test_first_failure_equals_the_papers_loop(values, current, accept_ties):
    best, wanted = current, 0
    for coefficient, value in zip(COEFFICIENTS, values, strict=True):
        if not (value >= best if accept_ties else value > best):
            break
        best, wanted = value, coefficient
    assert run("first_failure", values, current, accept_ties)[0].coefficient == wanted


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5), st.floats(0, 1))
def test_all_takes_the_best_that_is_no_worse_than_the_current(values, current):
    outcome, asked = run("all", values, current)
    assert asked == COEFFICIENTS
    best = max(values)
    if best >= current:
        assert values[COEFFICIENTS.index(outcome.coefficient)] == best
    else:
        assert outcome.coefficient == 0


@pytest.mark.parametrize(
    ("optimum", "accepted"),
    [(0.3, 0.5), (1.0, 1.0), (5.9, 6.0), (4.4, 4.0), (13, 16.0), (-0.3, -0.25), (-0.9, -0.5), (0.05, 0.0), (1e6, LONGEST_STEP)],
)  # fmt: skip
def test_line_search_finds_its_nearest_step_to_the_optimum_of_a_parabola(optimum, accepted):
    outcome, asked = run("line", lambda c: -((c - optimum) ** 2), -(optimum**2), accept_ties=False)
    assert outcome.coefficient == accepted
    assert len(asked) == len(set(asked)) <= 12


@pytest.mark.parametrize(
    ("start", "optimum", "accepted", "asked"),
    [
        (64, 70, 64, [64, 128, 96]),  # where the last one ended: three trials
        (64, 90, 96, [64, 128, 96]),
        (64, 20, 32, [64, 32]),
        (48, 2, 3, [48, 24, 12, 6, 3]),
        (3, -0.3, -0.25, [3, 1.5, 0.75, 0.375, -0.25, -0.5]),
        (LONGEST_STEP, 1e6, LONGEST_STEP, [LONGEST_STEP]),
    ],
)
def test_a_line_search_may_start_where_the_last_one_ended(start, optimum, accepted, asked):
    tried = []

    def score(coefficient):
        tried.append(coefficient)
        return -((coefficient - optimum) ** 2)

    assert search("line", score, -(optimum**2), [], False, first_step(start)).coefficient == accepted
    assert tried == asked


def test_a_line_search_starts_at_one_after_a_step_back_or_none():
    assert [first_step(previous) for previous in (0.0, -0.5, 0.75, 1e9)] == [1.0, 1.0, 0.75, LONGEST_STEP]


KINDS, RULES = ("first_failure", "all", "line"), (True, False)
ANY_SCORE = st.floats(-1, 1) | st.sampled_from([0.5, math.nan, math.inf, -math.inf])


@given(st.sampled_from(KINDS), st.sampled_from(RULES), ANY_SCORE, st.lists(ANY_SCORE, min_size=40, max_size=40))
def test_a_score_that_is_not_finite_is_never_accepted_and_with_such_a_current_one_nothing_is_tried(
    kind, accept_ties, current, scores
):
    given_scores = iter(scores)
    outcome, _ = run(kind, lambda c: next(given_scores), current, accept_ties)
    if not math.isfinite(current):
        assert (outcome.trials, outcome.coefficient) == ([], 0)
        assert "is not finite" in outcome.reason
        assert "is not finite" in outcome.warning
    accepted = [trial.score for trial in outcome.trials if trial.accepted]
    assert all(math.isfinite(score) for score in accepted)
    kept = [current, *accepted]
    assert kept == sorted(kept), "the best only rises"
    if kind == "line" or not accept_ties:
        assert len(set(kept)) == len(kept), "a tie was accepted"


@pytest.mark.parametrize("accept_ties", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.25])
def test_a_flat_gate_lengthens_no_step_and_is_warned_of_where_ties_are_taken(kind, accept_ties, value):
    """0 of 50, or 50 of 50: the accuracy of every candidate."""
    outcome, asked = run(kind, lambda c: value, value, accept_ties)
    taken = kind != "line" and accept_ties
    assert outcome.coefficient == (COEFFICIENTS[-1] if taken else 0)
    assert bool(outcome.warning) == taken
    assert max(asked) <= max(COEFFICIENTS)
    assert kind != "line" or max(asked) == 1


def test_a_plateau_ends_a_line_search_where_it_begins():
    outcome, asked = run("line", lambda c: min(c, 4.0), 0.0, True)
    assert (outcome.coefficient, asked, outcome.warning) == (4, [1, 2, 4, 8, 6], "")


def test_a_gate_of_pure_noise_accepts_k_candidates_with_probability_one_over_k_plus_one_factorial():
    """paper section 2: what the accuracy gate must beat."""
    rng = np.random.default_rng(0)
    trials = 20000
    lengths = []
    for _ in range(trials):
        values = iter(rng.random(6))
        current = next(values)
        lengths.append(
            sum(
                t.accepted
                for t in search("first_failure", lambda c, v=values: next(v), current, COEFFICIENTS, True).trials
            )
        )
    for k in (1, 2, 3):
        wanted = 1 / math.factorial(k + 1)
        assert np.mean(np.array(lengths) >= k) == pytest.approx(wanted, abs=4 * math.sqrt(wanted / trials))
