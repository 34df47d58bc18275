"""The gate: what is drawn for whom, and what its metrics say."""

import math
from contextlib import ExitStack

import pytest
import torch

import added_entries
from effopd.common.errors import ConfigError
from effopd.common.randomness import generator, seed_of
from effopd.data.prompts import Prompts
from effopd.data.verification import encode_prompts
from effopd.engines.transformers_engine import TransformersEngine
from effopd.extrapolation.driver import Decision
from effopd.extrapolation.gate import BlindGate, GateValue, gate_rows, gate_seeds
from effopd.extrapolation.search import search
from effopd.models.models import save_model, special_ids, weights_of
from effopd.specs.engines import Sampling
from effopd.specs.extrapolation import SearchSettings
from effopd.specs.read import read_spec
from effopd.stages.evaluate_candidates import opened_gate
from effopd.tasks.base import Problem
from effopd.teachers.scoring import ReverseKL
from tiny_models import make_model
from typed_settings import ENGINE

RAY = {"coefficients": [2, 4], "search": "first_failure", "accept_ties": True, "parameters": "all"}
PROBLEMS = [Problem(f"{a}+{b}+{c}=", f"{a + b + c}", c) for a in range(3) for b in range(4) for c in range(5)]


class Asked:
    """A gate that is asked about given weights, and what it said."""

    def __init__(self, opened):
        self.gate = opened(lambda: self.weights)
        self.values, self.costs = [], []

    def score(self, weights, coefficient):
        self.weights = weights
        value = self.gate.judge(coefficient)
        self.values.append(value.entry(coefficient))
        self.costs += value.costs(coefficient)
        return value.usable_score


@pytest.fixture
def gate_of(tmp_path, tokenizer):
    """Makes a gate over a random student and another random teacher."""
    for name, seed in (("student", 0), ("teacher", 1)):
        model = make_model(seed)
        save_model(model.config, weights_of(model), tokenizer, tmp_path / name)

    def make(rollouts=None, temperature=1.0, step=4, **settings):
        gate = {
            "metric": "reverse_kl",
            "examples": 12,
            "source": "train",
            "samples": 1,
            "paired": True,
            "difficulty": {},
        }
        gate |= settings
        spec = {
            "seed": 0,
            "step": step,
            "extrapolation": {**RAY, "gate": gate},
            "parts": {},
            "sampling": {"temperature": temperature, "max_new_tokens": 8},
            "engine": ENGINE,
            "precision": "float32",
            "task": {"name": "arithmetic"},
            "code": "x",
        }
        spec = read_spec("evaluate_candidates", spec)
        manifests = (tmp_path / "student/manifest.json", tmp_path / "teacher/manifest.json")
        prompts = Prompts(encode_prompts(tokenizer, [problem.text for problem in PROBLEMS]), PROBLEMS)
        source, device = rollouts or prompts, torch.device("cpu")
        return Asked(lambda weights: opened.enter_context(opened_gate(spec, source, *manifests, device, weights)))

    with ExitStack() as opened:
        yield make


def test_paired_candidates_meet_the_same_random_numbers_and_unpaired_ones_their_own(gate_of):
    weights = weights_of(make_model(0))
    for paired in (True, False):
        gate = gate_of(paired=paired)
        first, second = gate.score(weights, 0.0), gate.score(weights, 2.0)
        assert (first == second) == paired
        assert (gate.values[0]["per_item"] == gate.values[1]["per_item"]) == paired


def test_a_gate_draws_from_problems_of_the_difficulty_asked_for(gate_of):
    drawn = gate_of(difficulty={"min": 2, "max": 3}).gate.rows
    assert len(drawn) == 12
    assert {PROBLEMS[row].difficulty for row in drawn} == {2, 3}
    assert {PROBLEMS[row].difficulty for row in gate_of(difficulty={"max": 0}).gate.rows} == {0}
    with pytest.raises(ConfigError, match="is 13, and the train split holds 12 problems of the `difficulty` asked for"):
        gate_of(difficulty={"min": 4}, examples=13)
    with pytest.raises(ConfigError, match="holds 0 problems of"):
        gate_of(difficulty={"min": 9})


def test_the_reverse_kl_gate_prefers_the_teachers_own_weights_and_counts_its_tokens(gate_of):
    gate = gate_of()
    assert gate.score(weights_of(make_model(1)), 1.0) == 0
    assert gate.score(weights_of(make_model(0)), 0.0) < 0
    assert [row["stage"] for row in gate.costs] == ["gate: generate", "gate: score"] * 2
    assert all(row["generated_tokens"] + row["scored_tokens"] > 0 for row in gate.costs)
    value = gate.values[1]
    assert value["score"] == -value["value"]
    assert len(value["per_item"]) == 12


def test_more_examples_than_the_split_holds_is_one_line(gate_of):
    """Where only the data knows how many there are."""
    with pytest.raises(ConfigError, match="`extrapolation.gate.examples` is 61, and the train split holds 60 problems"):
        gate_of(examples=61)


def test_the_examples_are_drawn_once_without_repeats_and_samples_multiply_them(gate_of):
    rows = gate_of().gate.rows
    assert rows == gate_of(metric="accuracy").gate.rows
    assert len(set(rows)) == 12
    assert gate_of(samples=3).gate.rows == [row for row in rows for _ in range(3)]


def test_the_seeds_of_a_gates_completions_differ_by_run_step_and_position_and_by_candidate_only_where_unpaired():
    """What differs in any of these must not share a random number; what is the same in all must share them all."""

    def seeds(seed=0, step=4, coefficient=2.0, paired=True):
        return gate_seeds(seed, step, coefficient, 12, paired)

    assert seeds() == seeds()
    assert len(seeds()) == len(set(seeds())) == 12
    assert seeds(coefficient=0.0) == seeds(coefficient=2.0)
    others = [seeds(seed=1), seeds(step=8), seeds(paired=False), seeds(coefficient=0.0, paired=False)]
    others.append(seeds(step=8, paired=False))
    for other in others:
        assert not set(other) & set(seeds())
    assert len({seed for other in others for seed in other}) == 12 * len(others)
    assert gate_seeds(0, 4, 2.0, 5, True) == seeds()[:5], "more problems change no seed of the first ones"


def test_what_a_gate_draws_is_named_by_seed_purpose_and_place_alone():
    """Written out: a trigger that was decided once must be decided alike by later versions."""
    assert gate_seeds(5, 4, 2.0, 3, True) == [seed_of(5, "gate", 4, "paired", place) for place in range(3)]
    assert gate_seeds(5, 4, 2.0, 3, False) == [seed_of(5, "gate", 4, "2", place) for place in range(3)]
    chosen = sorted(generator(5, "gate examples", "train").choice(60, 12, replace=False).tolist())
    assert gate_rows(5, "train", 60, 12, 2) == [row for row in chosen for _ in range(2)]
    assert gate_rows(5, "train", 12, 12, 1) == list(range(12)), "without repeats"
    assert BlindGate("random", 5, 4).judge(2.0).value == generator(5, "random gate", 4, "2").random()


def test_a_value_that_is_not_finite_leaves_nothing_but_its_coefficient_and_scores_nothing():
    whole = GateValue(0.5, -0.5, [0.25, 0.25]).entry(2.0)
    assert whole == {"coefficient": 2.0, "value": 0.5, "score": -0.5, "per_item": [0.25, 0.25]}
    assert GateValue.from_entry(whole) == GateValue(0.5, -0.5, [0.25, 0.25])
    nothing = {"coefficient": 2.0, "value": None, "score": None, "per_item": []}
    for broken in (math.nan, math.inf, -math.inf):
        for value in (GateValue(broken, 0.5), GateValue(0.5, broken), GateValue(0.5, 0.5, [0.5, broken])):
            assert value.entry(2.0) == nothing
            assert math.isnan(value.usable_score)
    assert GateValue.from_entry(nothing).entry(2.0) == nothing


def test_a_decision_holds_what_was_tried_in_order_and_what_was_accepted():
    said = {c: GateValue(v, -v, [v]) for c, v in ((0.0, 3.0), (2.0, 1.0), (4.0, 2.0))}
    values = {c: value.entry(c) for c, value in said.items()}
    settings = SearchSettings("first_failure", [2.0, 4.0], False)
    result = search("first_failure", lambda c: said[c].score, -3.0, [2.0, 4.0], False)
    decision = Decision(settings, result, said, {"all": 2.0}, 0, [])
    assert decision.record(8, metric="reverse_kl", update_norm={"all": 2.0, "moving": 1.0}) == {
        "step": 8,
        "coefficient": 2.0,
        "reason": "4 was rejected",
        "tie": False,
        "accept_ties": False,
        "metric": "reverse_kl",
        "current": values[0.0],
        "trials": [
            {**values[2.0], "accepted": True, "tie": False},
            {**values[4.0], "accepted": False, "tie": False},
        ],
        "update_norm": {"all": 2.0, "moving": 1.0},
    }


def test_a_later_trigger_draws_other_answers_to_the_same_problems(gate_of):
    weights = weights_of(make_model(0))
    first, again, later = gate_of(), gate_of(), gate_of(step=8)
    for gate in (first, again, later):
        gate.score(weights, 0.0)
    assert first.gate.rows == later.gate.rows
    assert first.values == again.values
    assert first.values[0]["per_item"] != later.values[0]["per_item"]


@pytest.mark.parametrize(("step", "seed", "coefficient"), [(8, 0, 2.0), (4, 1, 2.0), (4, 0, 2.5)])
def test_the_random_control_draws_anew_for_each_trigger_run_and_candidate(step, seed, coefficient):
    random = BlindGate("random", 0, 4)
    assert random.judge(2.0) == random.judge(2.0)
    assert 0 <= random.judge(2.0).value < 1
    assert BlindGate("random", seed, step).judge(coefficient).value != random.judge(2.0).value
    assert BlindGate("always", seed, step).judge(-coefficient).score == coefficient


@pytest.mark.parametrize("metric", ["reverse_kl", "accuracy"])
def test_weights_that_are_not_finite_are_never_accepted(gate_of, metric):
    """pandas sums skip NaN: a reverse KL summed that way is 0, the best there is."""
    gate = gate_of(metric=metric)
    broken = {name: tensor * float("nan") for name, tensor in weights_of(make_model(0)).items()}
    assert math.isnan(gate.score(broken, 10.0))
    assert gate.values[0] == {"coefficient": 10.0, "value": None, "score": None, "per_item": []}


def test_the_controls_look_at_no_weights(gate_of):
    always, random = gate_of(metric="always"), gate_of(metric="random")
    assert [always.score({}, c) for c in (0.0, 2.0, 4.0)] == [0.0, 2.0, 4.0]
    scores = [random.score({}, c) for c in (0.0, 2.0, 4.0)]
    assert len(set(scores)) == 3
    assert scores == [gate_of(metric="random").score({}, c) for c in (0.0, 2.0, 4.0)]


def test_on_the_steps_own_rollouts_nothing_is_generated_and_the_current_weights_are_judged_as_when_they_wrote_them(
    gate_of, tokenizer
):
    """The reverse KL at the rollouts' contexts: by hand, the mean over tokens of sum_v p (log p - log q)."""
    student, teacher = make_model(0), make_model(1)
    eos_id, pad_id = special_ids(tokenizer)
    engine = TransformersEngine(student, eos_id=eos_id, pad_id=pad_id, batch_size=16)
    prompts = encode_prompts(tokenizer, [problem.text for problem in PROBLEMS[:16]])
    rollouts = engine.generate(prompts, list(range(16)), Sampling(1.0, 8))
    gate = gate_of(rollouts, source="rollouts")
    gate.score(weights_of(student), 0.0)
    total, tokens = 0.0, 0
    for row in gate_rows(0, "rollouts", 16, 12, 1):
        ids = torch.tensor([rollouts.prompts[row] + rollouts.completions[row]])
        start = len(rollouts.prompts[row]) - 1
        with torch.no_grad():
            mine, theirs = (model(ids).logits[0, start:-1].log_softmax(-1) for model in (student, teacher))
        total += (mine.exp() * (mine - theirs)).sum().item()
        tokens += len(rollouts.completions[row])
    assert gate.values[0]["value"] == pytest.approx(total / tokens, rel=1e-5)
    assert gate.score(weights_of(teacher), 1.0) == pytest.approx(0, abs=1e-7)
    costs = [(row["generated_tokens"], row["scored_tokens"], row["judged_tokens"]) for row in gate.costs]
    assert costs == [(0, tokens, tokens), (0, 0, tokens)], "the teacher is asked once"


def sharpened(model, factor):
    """Weights with which a model's logits are `factor` times as large."""
    weights = weights_of(model)
    return weights | {"lm_head.weight": weights["lm_head.weight"] * factor}


@pytest.mark.parametrize("source", ["train", "rollouts"])
def test_a_gate_judges_the_policy_at_the_temperature_that_it_is_trained_at(gate_of, source, tokenizer):
    """At temperature 2 a student whose logits are twice the teacher's has reached the objective."""
    rollouts = None
    if source == "rollouts":
        engine = TransformersEngine.of(make_model(0), tokenizer, batch_size=16, context=32, dtype="float32")
        prompts = encode_prompts(tokenizer, [problem.text for problem in PROBLEMS[:16]])
        rollouts = engine.generate(prompts, list(range(16)), Sampling(2.0, 8))
    gate = gate_of(rollouts, temperature=2.0, source=source)
    assert gate.score(sharpened(make_model(1), 2.0), 2.0) == pytest.approx(0, abs=1e-6)
    assert gate.score(weights_of(make_model(1)), 1.0) < -0.1


def test_a_gate_on_rollouts_with_large_logits_pays_for_one_question_to_the_teacher(gate_of, tokenizer, monkeypatch):
    monkeypatch.setitem(ReverseKL.__init__.__kwdefaults__, "remembered_bytes", 0)
    engine = TransformersEngine.of(make_model(0), tokenizer, batch_size=16, context=32, dtype="float32")
    prompts = encode_prompts(tokenizer, [problem.text for problem in PROBLEMS[:16]])
    gate = gate_of(engine.generate(prompts, list(range(16)), Sampling(1.0, 8)), source="rollouts")
    calls = []
    gate.gate.divergence.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    for coefficient in (0.0, 2.0, 4.0):
        gate.score(weights_of(make_model(0)), coefficient)
    assert len(calls) == 1
    assert [row["scored_tokens"] for row in gate.costs] == [gate.gate.tokens, 0, 0]


@pytest.mark.parametrize("accept_ties", [True, False])
@pytest.mark.parametrize("kind", ["first_failure", "all", "line"])
def test_a_gate_that_is_not_finite_accepts_nothing(gate_of, kind, accept_ties):
    """For the current weights, or for every candidate."""
    good, broken = weights_of(make_model(0)), sharpened(make_model(0), math.nan)
    for current, others in ((broken, good), (good, broken)):
        gate = gate_of()
        outcome = search(kind, lambda c, g=gate, w=others: g.score(w, c), gate.score(current, 0.0), [2, 4], accept_ties)
        assert outcome.coefficient == 0
        assert not any(trial.accepted for trial in outcome.trials)


@pytest.mark.parametrize(
    ("metric", "source"), [("accuracy", "train"), ("reverse_kl", "train"), ("reverse_kl", "rollouts")]
)
def test_an_added_gate_that_computes_the_same_says_the_same_at_the_same_cost(
    gate_of, tokenizer, monkeypatch, metric, source
):
    rollouts = None
    if source == "rollouts":
        engine = TransformersEngine.of(make_model(0), tokenizer, batch_size=16, context=32, dtype="float32")
        prompts = encode_prompts(tokenizer, [problem.text for problem in PROBLEMS[:16]])
        rollouts = engine.generate(prompts, list(range(16)), Sampling(2.0, 8))
    added_entries.add(monkeypatch, "gates")
    gates = [gate_of(rollouts, temperature=2.0, metric=name, source=source) for name in (metric, f"own_{metric}")]
    broken = {name: tensor * float("nan") for name, tensor in weights_of(make_model(0)).items()}
    for gate in gates:
        for coefficient, weights in ((0.0, weights_of(make_model(0))), (2.0, weights_of(make_model(2))), (4.0, broken)):
            gate.score(weights, coefficient)
    assert gates[1].values == gates[0].values
    assert gates[0].values[2]["score"] is None
    spent = [[{key: row[key] for key in row if key != "seconds"} for row in gate.costs] for gate in gates]
    assert [row for row in spent[1] if row["coefficient"] != 4] == [row for row in spent[0] if row["coefficient"] != 4]


def test_an_added_gate_is_given_its_options_and_asks_the_teacher_once_about_the_same_rollouts(
    gate_of, tokenizer, monkeypatch
):
    added_entries.add(monkeypatch, "gates")
    engine = TransformersEngine.of(make_model(0), tokenizer, batch_size=16, context=32, dtype="float32")
    prompts = encode_prompts(tokenizer, [problem.text for problem in PROBLEMS[:16]])
    rollouts = engine.generate(prompts, list(range(16)), Sampling(1.0, 8))
    gates = [gate_of(rollouts, source="rollouts", metric="sampled_kl", options={"scale": scale}) for scale in (1, 3)]
    for gate in gates:
        assert gate.score(weights_of(make_model(1)), 0.0) == pytest.approx(0, abs=1e-6)  # the teacher's own
        gate.score(weights_of(make_model(0)), 2.0)
        tokens = [row["judged_tokens"] for row in gate.costs]
        assert [row["scored_tokens"] for row in gate.costs] == [tokens[0], 0]
    assert gates[1].values[1]["value"] == pytest.approx(3 * gates[0].values[1]["value"])


@pytest.mark.parametrize(
    ("metric", "line"),
    [
        ("no_value", "the gate `no_value` of the package one returned 1.0. It has to return a GateValue"),
        ("own_accuracy", "`gate.metric` is 'own_accuracy', which asks for rewards, and the source `rollouts` has none"),
    ],
)
def test_what_an_added_gate_cannot_do_is_one_line(gate_of, tokenizer, monkeypatch, metric, line):
    added_entries.add(monkeypatch, "gates")
    engine = TransformersEngine.of(make_model(0), tokenizer, batch_size=16, context=32, dtype="float32")
    prompts = encode_prompts(tokenizer, [problem.text for problem in PROBLEMS[:16]])
    rollouts = engine.generate(prompts, list(range(16)), Sampling(1.0, 8))
    with pytest.raises(ConfigError, match=line):
        gate_of(rollouts, source="rollouts", metric=metric).score(weights_of(make_model(0)), 0.0)
