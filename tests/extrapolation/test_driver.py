"""One trigger on a small quadratic, against brute force, whoever keeps the weights."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from effopd.extrapolation.candidates import RayInMemory, candidate
from effopd.extrapolation.driver import extrapolate
from effopd.extrapolation.gate import GateValue
from effopd.extrapolation.modules import by_module
from effopd.extrapolation.search import first_step
from effopd.specs.extrapolation import LINE_BY_MODULE, SearchSettings
from typed_settings import extrapolation_settings

CURRENT = {
    "embed_tokens.weight": torch.tensor([0.3, -1.1]),
    "layers.0.self_attn.q_proj.weight": torch.tensor([[0.7, 0.1, -0.4], [2.0, -0.9, 0.6]]),
    "layers.0.mlp.up_proj.weight": torch.tensor([1.7, 0.2, 0.9]),
    "norm.weight": torch.tensor([1.0]),  # does not move
}
ANCHOR = {
    name: tensor - torch.linspace(0.05, 0.1, tensor.numel()).view(tensor.shape) for name, tensor in CURRENT.items()
}
MODULES = by_module(list(CURRENT)[:3])


class Shards:
    """Weights of which each of two ranks moves its half in place, and nobody has all."""

    modules = tuple(MODULES)

    def __init__(self):
        self.parts = {
            name: [list(w.flatten().clone().tensor_split(2)) for w in (t, t, ANCHOR[name])]
            for name, t in CURRENT.items()
        }

    def put(self, coefficients):
        for module, names in MODULES.items():
            for name in names:
                for part, current, anchor in zip(*self.parts[name], strict=True):
                    part.copy_(current + (current - anchor) * coefficients[module])

    def weights(self):
        return {name: torch.cat(parts).view(CURRENT[name].shape) for name, (parts, *_) in self.parts.items()}


RAYS = {"in memory": lambda: RayInMemory(CURRENT, ANCHOR, MODULES), "shards": Shards}


class Quadratic:
    """A gate that is highest where each module has come as far as its optimum; what it is asked is written down."""

    def __init__(self, ray, optimum, broken=()):
        self.ray, self.optimum, self.broken, self.asked = ray, optimum, broken, []

    def judge(self, coefficient):
        weights = self.ray.weights()
        self.asked.append((coefficient, b"".join(tensor.numpy().tobytes() for tensor in weights.values())))
        score = math.nan if coefficient in self.broken else score_of(weights, self.optimum)
        return GateValue(-score, score, [score], [{"stage": "gate", "judged_tokens": len(self.asked)}])


def at(coefficients):
    """The weights with these coefficients by module."""
    weights = CURRENT
    for module, names in MODULES.items():
        weights = candidate(weights, ANCHOR, coefficients[module], names)
    return weights


def score_of(weights, optimum):
    best = at(optimum)
    return -math.fsum(float((weights[name].double() - best[name].double()).square().sum()) for name in weights)


def flat(coefficient):
    return dict.fromkeys(MODULES, coefficient)


OPTIMUM = st.fixed_dictionaries(dict.fromkeys(MODULES, st.floats(-1, 40)))
COEFFICIENTS = st.lists(st.sampled_from([0.5, 1, 2, 3, 4, 6, 8, 10, 16]), min_size=1, unique=True).map(sorted)
SEARCH = st.builds(
    SearchSettings,
    st.sampled_from(["first_failure", "all", "line", LINE_BY_MODULE]),
    COEFFICIENTS,
    st.sampled_from([True, False]),
)


@settings(deadline=None)
@given(SEARCH, OPTIMUM, st.floats(-1, 20), st.sets(st.sampled_from([0.5, 1, 2, 4, 8, 0])))
@example(SearchSettings("all", [2, 2, 4], True), flat(2.0), 1.0, set())  # a coefficient twice
@example(SearchSettings(LINE_BY_MODULE, [], False), {**flat(4.0), "mlp": 6.0}, 1.0, set())
def test_the_decision_is_that_of_brute_force_whoever_keeps_the_weights(search, optimum, previous, broken):
    decisions = []
    for make in RAYS.values():
        ray = make()
        gate = Quadratic(ray, optimum, broken)
        decision = extrapolate(ray, gate, search, previous=previous)
        decisions.append(decision.record(4, metric="quadratic", update_norm={}))
        assert len(set(gate.asked)) == len(gate.asked) == len(decision.values) + decision.module_trials
        ended = ray.weights()
        assert all(torch.equal(ended[name], tensor) for name, tensor in at(decision.coefficients).items())
        points = {
            coefficient: math.nan if coefficient in broken else score_of(at(flat(coefficient)), optimum)
            for coefficient in decision.values
        }
        np.testing.assert_equal([value.score for value in decision.values.values()], list(points.values()))
        finite = [score for score in points.values() if math.isfinite(score)]
        if 0 in broken:
            assert (list(points), decision.coefficient, decision.module_trials) == ([0.0], 0, 0)
        else:
            assert points[decision.coefficient] == max(finite), "no candidate that was judged is better"
            assert score_of(ended, optimum) >= points[decision.coefficient]
            if search.search == "all":
                assert list(points) == [0.0, *dict.fromkeys(search.coefficients)], "all were judged"
            if search.search.startswith("line"):
                assert list(points)[1] == first_step(previous)
        if not search.refines or decision.coefficient == 0:
            assert decision.coefficients == flat(decision.coefficient)
            assert decision.module_trials == 0
        assert decision.tie == (decision.coefficient != 0 and points[decision.coefficient] == points[0.0])
        assert [row["judged_tokens"] for row in decision.costs] == list(range(1, len(gate.asked) + 1))
        assert [row["coefficient"] for row in decision.costs] == [coefficient for coefficient, _ in gate.asked]
    assert decisions[0] == decisions[1]


class Recorded:
    """A gate that says the same of each coefficient every time."""

    def __init__(self, scores):
        self.scores = scores

    def judge(self, coefficient):
        return GateValue(self.scores[coefficient], self.scores[coefficient])


@pytest.mark.parametrize(
    ("scores", "accepted", "tie", "ties"),
    [
        ([0.0, 0.0, 0.0], 4.0, True, [True, True]),  # a gate that cannot see
        ([0.5, 0.5, 0.4], 2.0, True, [True, False]),
        ([0.5, 0.5, 0.6], 4.0, False, [True, False]),  # what went through a tie and ended better
        ([0.5, 0.6, 0.6], 4.0, False, [False, False]),  # a tie with the best so far alone
        ([0.5, 0.4, 0.5], 0.0, False, [False]),  # nothing was accepted
        ([0.5, math.nan, 0.5], 0.0, False, [False]),
        ([math.nan, math.nan, math.nan], 0.0, False, []),
    ],
)
def test_a_decision_that_was_a_tie_is_marked(scores, accepted, tie, ties):
    gate = Recorded(dict(zip((0.0, 2.0, 4.0), scores, strict=True)))
    ray = RayInMemory(CURRENT, ANCHOR, MODULES)
    decision = extrapolate(ray, gate, SearchSettings("first_failure", [2.0, 4.0], True))
    recorded = decision.record(1, metric="accuracy", update_norm={})
    assert (recorded["coefficient"], recorded["tie"]) == (accepted, tie)
    assert [trial["tie"] for trial in recorded["trials"]] == ties
    assert "tie" not in recorded["current"]


def test_a_search_by_module_asks_about_modules_with_the_draws_of_the_candidate_that_it_goes_on_from():
    """Written out: from 4 on attention is better off at 6, the MLP at 8/3, all else where it is."""
    ray = RayInMemory(CURRENT, ANCHOR, MODULES)
    gate = Quadratic(ray, {"attention": 6.0, "mlp": 8 / 3, "other": 4.0})
    search = extrapolation_settings(search=LINE_BY_MODULE, coefficients=[3.0], accept_ties=False, anchor="raw")
    chosen = SearchSettings(search.search, search.coefficients, search.accept_ties, search.options)
    assert chosen == SearchSettings(LINE_BY_MODULE, [3.0], False)
    decision = extrapolate(ray, gate, search)
    assert [coefficient for coefficient, _ in gate.asked] == [0.0, 1.0, 2.0, 4.0, 8.0, 6.0] + [4.0] * 5
    assert decision.coefficients == {"attention": 6.0, "mlp": 4 * (2 / 3), "other": 4.0}
    assert str(decision) == "coefficient 4 (8 was rejected)"
    recorded = decision.record(8, metric="quadratic", update_norm=ray.update_norm())
    assert (recorded["modules"], recorded["module_trials"]) == (decision.coefficients, 5)
    assert recorded["update_norm"]["moving"] < recorded["update_norm"]["all"]


@pytest.mark.parametrize("ray", RAYS)
@pytest.mark.parametrize("fails_at", [0.0, 1.0, 4.0, 6.0])
def test_where_a_gate_fails_the_current_weights_are_put_back(ray, fails_at):
    ray = RAYS[ray]()
    gate = Quadratic(ray, flat(5.0))

    class Failing:
        def judge(self, coefficient):
            if coefficient == fails_at:
                raise RuntimeError("the gate broke")
            return gate.judge(coefficient)

    with pytest.raises(RuntimeError, match="the gate broke"):
        extrapolate(ray, Failing(), SearchSettings(LINE_BY_MODULE, [], False))
    assert all(torch.equal(ray.weights()[name], tensor) for name, tensor in CURRENT.items())


def test_a_warning_is_printed_once_with_what_it_begins_with_or_not_at_all(capsys):
    ray = RayInMemory(CURRENT, ANCHOR, MODULES)
    gate = Quadratic(ray, flat(1.0), broken=[0.0])
    extrapolate(ray, gate, SearchSettings("all", [2.0], False))
    assert capsys.readouterr().err == ""
    extrapolate(ray, gate, SearchSettings("all", [2.0], False), warn="warning: step 3: ")
    said = "warning: step 3: nothing is extrapolated: the score of the current weights is not finite\n"
    assert capsys.readouterr().err == said


def test_a_search_that_another_package_adds_is_given_its_options(monkeypatch):
    given_options = []

    def own(trials, coefficients, start, **options):
        given_options.append(options)
        trials.trial(coefficients[0])
        return "it has ended"

    monkeypatch.setattr("effopd.extrapolation.search.load", lambda kind, name: own)
    ray = RayInMemory(CURRENT, ANCHOR, MODULES)
    gate = Quadratic(ray, dict.fromkeys(MODULES, 2.0))
    decision = extrapolate(ray, gate, SearchSettings("own", [2.0], False, {"width": 3}))
    assert given_options == [{"width": 3}]
    assert (decision.coefficient, decision.result.reason) == (2.0, "it has ended")
