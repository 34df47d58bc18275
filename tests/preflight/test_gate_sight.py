"""What a gate that counts right answers can tell: against sums written out, and against the searches themselves."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.extrapolation.search import search
from effopd.preflight.gate_sight import (
    CARRIED,
    POWER,
    CountingGate,
    chance_of_all,
    chance_of_last,
    chance_of_longest_line,
    upper_accuracy,
)

TIES = st.booleans()
ACCURACY = st.integers(0, 1000).map(lambda share: share / 1000)
INSIDE = st.floats(0.01, 0.99)
CANDIDATES = st.integers(1, 6)


def outcomes(answers, accuracy, weights):
    """(counts of right answers of that many weights, probability), all there are, by Bernoulli draws multiplied out."""
    for counts in itertools.product(range(answers + 1), repeat=weights):
        yield counts, math.prod(math.comb(answers, k) * accuracy**k * (1 - accuracy) ** (answers - k) for k in counts)


def by_hand(kind, answers, accuracy, accept_ties, coefficients):
    """The probability that a search ends at its last coefficient: its own code, on every outcome."""
    found = 0.0
    for (current, *others), probability in outcomes(answers, accuracy, 1 + len(coefficients)):
        scores = dict(zip(coefficients, others, strict=True))
        ended = search(kind, scores.__getitem__, current, coefficients, accept_ties)
        found += probability * (ended.coefficient == coefficients[-1])
    return found


@pytest.mark.parametrize("accept_ties", [True, False])
@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.4, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["first_failure", "all"])
@pytest.mark.parametrize(("answers", "coefficients"), [(1, [2, 4]), (4, [2]), (4, [2, 4, 6]), (7, [2, 4])])
def test_the_chance_that_noise_is_carried_is_the_sum_over_what_the_search_does(
    kind, answers, coefficients, accuracy, accept_ties
):
    gate = CountingGate(answers, accept_ties, paired=False)
    wanted = by_hand(kind, answers, accuracy, accept_ties, coefficients)
    assert CARRIED[kind](gate, accuracy, len(coefficients)) == pytest.approx(wanted, abs=1e-12)
    if len(coefficients) == 1:
        assert gate.chance(accuracy) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("accuracy", "answers"), [(0.3, 3), (0.05, 20), (0.6, 40)])
@pytest.mark.parametrize("kind", CARRIED)
def test_the_chance_is_that_of_searches_that_draw(kind, answers, accuracy):
    draw = np.random.default_rng(0)
    for accept_ties in (True, False):
        ended = [
            search(kind, lambda c: draw.binomial(answers, accuracy), draw.binomial(answers, accuracy), [2, 4, 6], accept_ties)
            for _ in range(4000)
        ]  # fmt: skip
        last = 1024 if kind == "line" else 6
        gate = CountingGate(answers, accept_ties and kind != "line", paired=False)
        share = np.mean([one.coefficient == last for one in ended])
        assert share == pytest.approx(CARRIED[kind](gate, accuracy, 3), abs=0.03)
        if kind == "first_failure":
            first = np.mean([one.trials[0].accepted for one in ended])
            assert first == pytest.approx(gate.chance(accuracy), abs=0.03)


def test_a_line_search_has_as_many_candidates_as_it_doubles():
    tried = []
    search("line", lambda c: tried.append(c) or len(tried), 0.0, [2], True)
    gate = CountingGate(30, False, paired=False)
    assert chance_of_longest_line(gate, 0.5, 1) == chance_of_all(gate, 0.5, len(tried))


def test_by_hand_at_one_answer():
    """Right or wrong: a candidate is rejected only if the current weights are right and it is wrong."""
    assert CountingGate(1, True, False).chance(0.3) == pytest.approx(1 - 0.3 * 0.7)
    assert CountingGate(1, False, False).chance(0.3) == pytest.approx(0.7 * 0.3)
    assert CountingGate(1, False, False).chance(0.3, 0.4) == pytest.approx(0.7 * 0.7)
    assert chance_of_all(CountingGate(1, False, False), 0.3, 2) == 0  # two improvements of one answer


@given(st.integers(1, 200), CANDIDATES)
def test_without_right_answers_ties_carry_noise_all_the_way_and_nothing_else_does(answers, candidates):
    for accuracy in (0.0, 1.0):
        for carried in (chance_of_all, chance_of_last):
            assert carried(CountingGate(answers, True, False), accuracy, candidates) == 1
            assert carried(CountingGate(answers, False, False), accuracy, candidates) == 0
        assert CountingGate(answers, True, False).chance(accuracy) == 1
        assert CountingGate(answers, False, False).chance(accuracy) == 0


@settings(deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), INSIDE, CANDIDATES)
def test_the_more_answers_the_less_ties_say(fewer, more, accuracy, candidates):
    """With ties the chance falls to that of counts that never tie, without it rises to it."""
    few, many = fewer, fewer + more
    for carried, limit in ((chance_of_all, 1 / math.factorial(candidates + 1)), (chance_of_last, 1 / (candidates + 1))):
        taken = [carried(CountingGate(n, True, False), accuracy, candidates) for n in (few, many)]
        left = [carried(CountingGate(n, False, False), accuracy, candidates) for n in (few, many)]
        assert taken[0] >= taken[1] - 1e-12
        assert left[0] <= left[1] + 1e-12
        assert left[1] - 1e-12 <= limit <= taken[1] + 1e-12


@settings(deadline=None)
@given(st.integers(1, 120), ACCURACY, CANDIDATES, st.booleans())
def test_ties_only_add(answers, accuracy, candidates, paired):
    ties, none = (CountingGate(answers, accept_ties, paired) for accept_ties in (True, False))
    for carried in CARRIED.values():
        assert 0 <= carried(none, accuracy, candidates) <= carried(ties, accuracy, candidates) + 1e-12 <= 1 + 1e-12
        assert carried(ties, accuracy, candidates) <= ties.chance(accuracy) + 1e-12 or carried is chance_of_last


@given(st.integers(1, 200), ACCURACY, CANDIDATES, TIES)
def test_paired_a_candidate_as_good_is_a_tie(answers, accuracy, candidates, accept_ties):
    gate = CountingGate(answers, accept_ties, paired=True)
    assert gate.chance(accuracy) == accept_ties
    assert {carried(gate, accuracy, candidates) for carried in CARRIED.values()} == {float(accept_ties)}


@settings(deadline=None)
@given(st.integers(1, 120), ACCURACY, st.floats(0, 1), st.floats(0, 1), TIES, st.booleans())
def test_a_larger_gain_is_accepted_more_often(answers, accuracy, one, other, accept_ties, paired):
    gate = CountingGate(answers, accept_ties, paired)
    low, high = sorted((one * (1 - accuracy), other * (1 - accuracy)))
    assert 0 <= gate.chance(accuracy, low) <= gate.chance(accuracy, high) + 1e-9 <= 1 + 1e-9


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 120), ACCURACY, TIES, st.booleans())
def test_the_smallest_visible_gain_is_just_visible(answers, accuracy, accept_ties, paired):
    gate = CountingGate(answers, accept_ties, paired)
    gain = gate.visible_gain(accuracy)
    if math.isnan(gain):
        assert gate.chance(accuracy, 1 - accuracy) < POWER
        return
    assert gate.chance(accuracy, gain) >= POWER
    assert gain == 0 or gate.chance(accuracy, max(0.0, gain - 2e-4)) < POWER


def test_visible_gains_in_numbers():
    """Of no right answers, one is an improvement: (1 - gain) ** 50 = 0.2. Of all that are right, none is possible."""
    gate = CountingGate(50, False, False)
    assert gate.visible_gain(0.0) == pytest.approx(1 - 0.2 ** (1 / 50), abs=2e-4)
    assert math.isnan(gate.visible_gain(1.0))
    assert CountingGate(50, True, False).visible_gain(0.0) == 0
    assert CountingGate(50, False, True).visible_gain(0.5) == pytest.approx(1 - 0.2 ** (1 / 50), abs=2e-4)


@pytest.mark.parametrize(("right", "answers"), [(0, 32), (3, 32), (31, 32)])
def test_the_upper_bound_of_an_accuracy_leaves_so_few_right_answers_a_chance_of_a_twentieth(right, answers):
    most = upper_accuracy(right, answers)
    below = sum(math.comb(answers, k) * most**k * (1 - most) ** (answers - k) for k in range(right + 1))
    assert below == pytest.approx(0.05)
    assert upper_accuracy(answers, answers) == 1


def test_the_table_of_the_documentation_is_what_the_module_computes():
    text = (Path(__file__).parents[2] / "docs/extrapolation.md").read_text(encoding="utf-8")
    _, _, after = text.partition("| N | p = 0 |")
    header, _, *lines = itertools.takewhile(lambda line: line.startswith("|"), ("|" + after).splitlines())
    shares = [0.0, *(float(cell) for cell in header.strip("| ").split(" | "))]
    assert len(lines) == 5
    for line in lines:
        answers, *cells = line.strip("| ").split(" | ")
        for accuracy, cell in zip(shares, cells, strict=True):
            ties, none = (CountingGate(int(answers), accept_ties, False) for accept_ties in (True, False))
            assert cell == (
                f"{ties.chance(accuracy):.2f}, {chance_of_all(ties, accuracy, 5):.3f}, "
                f"{100 * none.visible_gain(accuracy):.1f}"
            )
