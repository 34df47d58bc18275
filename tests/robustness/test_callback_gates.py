"""EffOPDCallback and a gate that says nothing: whatever is not a finite number accepts nothing."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from effopd.extrapolation.gate import GateValue
from effopd.integrations import transformers
from effopd.integrations.gates import ReverseKLGate
from effopd.integrations.transformers import SEARCHES, EffOPDCallback
from effopd.models.models import weights_of
from tiny_models import byte_tokenizer, make_model


def trigger(folder, gate, **settings):
    """A model one update after its anchor, at a trigger: what the callback decided, and the weights before and after."""
    model = make_model(0)
    callback = EffOPDCallback(gate, triggers=[2], parameters="all", **settings)
    arguments, state = SimpleNamespace(output_dir=str(folder)), SimpleNamespace(global_step=0, max_steps=4)
    callback.on_train_begin(arguments, state, None, model=model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    before = weights_of(model)
    state.global_step = 2
    callback.on_step_end(arguments, state, None, model=model)
    return callback.decisions[-1], before, weights_of(model)


@pytest.mark.parametrize(
    "bad", [math.nan, math.inf, -math.inf, GateValue(0.5, math.nan, [0.0, 1.0]), GateValue(9, 9, [math.nan, 9])]
)
@pytest.mark.parametrize("where", ["current", "candidates"])
@pytest.mark.parametrize("accept_ties", [True, False])
@pytest.mark.parametrize("search", SEARCHES)
def test_what_is_not_finite_is_never_accepted(tmp_path, search, accept_ties, where, bad):
    def gate(model, step, coefficient):
        return bad if (coefficient == 0) == (where == "current") else 1.0 + coefficient

    decision, before, after = trigger(tmp_path, gate, search=search, accept_ties=accept_ties)
    assert decision["coefficient"] == 0
    assert not any(trial["accepted"] for trial in decision["trials"])
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("accept_ties", [True, False])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_flat_gate_is_warned_of_where_it_decides(tmp_path, capsys, search, accept_ties):
    decision, *_ = trigger(tmp_path, lambda *_: 0.0, search=search, accept_ties=accept_ties)
    ties = accept_ties and not search.startswith("line")
    assert decision["coefficient"] == (10 if ties else 0)
    assert ("warning" in capsys.readouterr().err) == ties


@pytest.mark.parametrize("rank", [0, 1])
def test_a_line_search_after_every_step_starts_on_every_rank_where_the_last_one_ended(tmp_path, monkeypatch, rank):
    """Only the first rank has the decisions, and all must try the same candidates: each of them takes all ranks."""
    monkeypatch.setattr(transformers, "rank", lambda: rank)
    asked = []

    def gate(model, step, coefficient):
        asked.append((step, coefficient))
        return -abs(coefficient - 4)

    model = make_model(0)
    callback = EffOPDCallback(gate, triggers="every_step", search="line", accept_ties=False, parameters="all")
    arguments, state = SimpleNamespace(output_dir=str(tmp_path)), SimpleNamespace(global_step=0, max_steps=2)
    callback.on_train_begin(arguments, state, None, model=model)
    for state.global_step in (1, 2):
        with torch.no_grad():
            next(model.parameters()).add_(0.01)
        callback.on_step_end(arguments, state, None, model=model)
    assert asked == [*((1, c) for c in (0, 1, 2, 4, 8, 6)), *((2, c) for c in (0, 4, 8, 6))]


def test_the_reverse_kl_is_that_of_the_policy_that_is_sampled_from():
    tokenizer = byte_tokenizer()
    student, teacher = make_model(0, len(tokenizer)), make_model(0, len(tokenizer))
    teacher.lm_head.weight.data /= 2
    settings = {"max_new_tokens": 6, "examples": 2}
    values = [
        ReverseKLGate(["1+2=", "3+4="], teacher, tokenizer, temperature=temperature, **settings)(student, 1, 0.0).value
        for temperature in (2.0, 1.0)
    ]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(values[1])
    assert values[1] > 0.1
