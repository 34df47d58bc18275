"""Extrapolation after every step: what it tries, what it leaves in the trainer, and that it generates nothing."""

from dataclasses import replace

import pytest
import torch

from effopd.common.errors import ConfigError
from effopd.data.rollouts import PaddedBatch
from effopd.distillation.every_step import StepExtrapolation
from effopd.engines.transformers_engine import TransformersEngine
from effopd.extrapolation.candidates import candidate, moving_parameters
from effopd.extrapolation.gate import gate_rows
from effopd.extrapolation.modules import by_module
from effopd.losses.divergences import negative_log_likelihood, token_logprobs
from effopd.models.models import save_model, special_ids, weights_of
from effopd.specs.engines import Sampling
from effopd.teachers.scoring import ReverseKL, measure_reverse_kl
from effopd.training.trainer import Trainer, TrainerSettings
from tiny_models import make_model
from typed_settings import extrapolation_settings, training_settings

BATCH_SIZE = 3


@pytest.fixture
def setting(tmp_path, tokenizer):
    """A trainer, the rollouts of its student, and a maker of what extrapolates its steps towards a random teacher."""
    model = make_model(0)
    save_model(model.config, weights_of(model), tokenizer, tmp_path / "student")
    eos_id, pad_id = special_ids(tokenizer)
    trainer = Trainer(make_model(0), TrainerSettings(1e-3, (0.9, 0.999), 0.0, 1.0))
    engine = TransformersEngine(trainer.model, eos_id=eos_id, pad_id=pad_id, batch_size=8)
    rollouts = engine.generate([[3 + i, 5, 9] for i in range(8)], list(range(8)), Sampling(1.0, 6))

    def make(
        previous=1.0,
        moments="kept",
        parameters="attention_mlp",
        search="line",
        accept_ties=False,
        teacher=None,
        temperature=1.0,
        **gate,
    ):
        extrapolation = extrapolation_settings(
            coefficients=[2, 4, 6, 8, 10],
            search=search,
            accept_ties=accept_ties,
            parameters=parameters,
            gate={"metric": "reverse_kl", "source": "rollouts", "examples": 5, **gate},
        )
        return StepExtrapolation(
            extrapolation,
            training_settings(batch_size=BATCH_SIZE, temperature=temperature),
            moments=moments,
            trainer=trainer,
            student=tmp_path / "student",
            teacher=lambda: teacher or make_model(1),
            pad_id=pad_id,
            seed=0,
            previous=previous,
            device=torch.device("cpu"),
        )

    def update() -> None:
        """A step towards what the teacher says of the rollouts."""
        batch = PaddedBatch.of(rollouts, pad_id, torch.device("cpu"))
        with torch.no_grad():
            wanted = make_model(1)(input_ids=batch.tokens[:, :-1]).logits[batch.mask].argmax(-1)

        def loss(model, _):
            logits = model(input_ids=batch.tokens[:, :-1]).logits[batch.mask]
            return negative_log_likelihood(token_logprobs(logits, wanted), len(wanted)), {}

        trainer.step([None], loss, 1e-3)

    return trainer, rollouts, make, update, pad_id


def test_the_accepted_candidate_of_the_steps_own_update_is_what_training_goes_on_from(setting):
    trainer, rollouts, make, update, pad_id = setting
    extrapolation = make()
    first_trials, accepted = [], []
    for step in (1, 2):
        before = trainer.weights()
        update()
        current, moments = trainer.weights(), trainer.optimizer_state().moments
        facts, (cost,) = extrapolation(rollouts, step)
        moving = moving_parameters(current, "attention_mlp")
        chosen = rollouts.select(gate_rows(0, "rollouts", len(rollouts), 5, 1))
        for coefficient, value in zip(facts["trial_coefficients"], facts["trial_values"], strict=True):
            model = make_model(0)
            model.load_state_dict({**model.state_dict(), **candidate(current, before, coefficient, moving)})
            rows = measure_reverse_kl(model, make_model(1), chosen, pad_id=pad_id, batch_size=8)
            by_hand = sum(float(row.sum()) for row in rows) / chosen.completion_tokens
            assert value == pytest.approx(by_hand, rel=1e-5)
        best = facts["trial_coefficients"][
            min(range(len(facts["trial_values"])), key=facts["trial_values"].__getitem__)
        ]
        assert facts["coefficient"] == best > 0
        assert not facts["tie"]
        wanted = candidate(current, before, best, moving)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in trainer.weights().items())
        after = trainer.optimizer_state().moments
        assert all(torch.equal(tensor, moments[name]) for name, tensor in after.items())
        assert cost["generated_tokens"] == 0
        assert cost["scored_tokens"] == chosen.completion_tokens
        assert cost["judged_tokens"] == chosen.completion_tokens * len(facts["trial_values"])
        first_trials.append(facts["trial_coefficients"][1])
        accepted.append(best)
    assert first_trials == [1.0, accepted[0]], "a search starts where the last one ended"


def test_by_module_each_part_of_the_update_gets_the_coefficient_that_is_best_for_it(setting):
    trainer, rollouts, make, update, pad_id = setting
    extrapolation = make(parameters="all", search="line_by_module")
    before = trainer.weights()
    update()
    current = trainer.weights()
    facts, (cost,) = extrapolation(rollouts, 1)
    line = facts["coefficient"]
    assert facts["trial_coefficients"][1] == 1.0
    modules = by_module(current)
    assert list(modules) == ["attention", "mlp", "other"]
    found = {module: facts[f"coefficient_{module}"] for module in modules}
    assert set(found.values()) <= {line, line * 3 / 2, line * 2 / 3}
    assert set(found.values()) != {line}, "no module was better off alone: the test proves too little"
    wanted = current
    for module, names in modules.items():
        wanted = candidate(wanted, before, found[module], names)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in trainer.weights().items())
    chosen = rollouts.select(gate_rows(0, "rollouts", len(rollouts), 5, 1))
    model = make_model(0)
    model.load_state_dict({**model.state_dict(), **wanted})
    rows = measure_reverse_kl(model, make_model(1), chosen, pad_id=pad_id, batch_size=8)
    assert sum(float(row.sum()) for row in rows) / chosen.completion_tokens < min(facts["trial_values"])
    assert cost["judged_tokens"] == chosen.completion_tokens * (len(facts["trial_values"]) + facts["module_trials"])


def test_where_no_candidate_is_better_the_step_stays_as_it_is(setting):
    trainer, rollouts, make, update, _ = setting
    extrapolation = make(examples=100, metric="always", source="rollouts", accept_ties=False, search="first_failure")
    # as good as the current weights, and no better
    extrapolation.settings = replace(extrapolation.settings, coefficients=[0.0])
    update()
    current = trainer.weights()
    facts, (cost,) = extrapolation(rollouts, 1)
    assert facts["coefficient"] == 0
    assert all(torch.equal(tensor, current[name]) for name, tensor in trainer.weights().items())
    assert (cost["scored_tokens"], cost["judged_tokens"]) == (0, 0), "a control looks at no tokens"


def test_moments_are_scaled_after_a_jump_where_the_configuration_says_so(setting):
    trainer, rollouts, make, update, _ = setting
    extrapolation = make(moments="scaled")
    update()
    before = trainer.optimizer_state().moments
    facts, _ = extrapolation(rollouts, 1)
    factor = 1 / (1 + facts["coefficient"])
    for name, tensor in trainer.optimizer_state().moments.items():
        torch.testing.assert_close(tensor, before[name] * factor ** (2 if name.startswith("exp_avg_sq.") else 1))


def test_parameters_that_match_nothing_are_one_line(setting):
    with pytest.raises(ConfigError, match="`extrapolation.parameters`: 'nothing' matches no parameter"):
        setting[2](parameters="nothing")


@pytest.mark.parametrize("accept_ties", [True, False])
@pytest.mark.parametrize("search", ["first_failure", "all", "line", "line_by_module"])
@pytest.mark.parametrize("broken", ["current", "candidates"])
def test_a_gate_that_is_not_finite_accepts_nothing(setting, search, accept_ties, broken):
    trainer, rollouts, make, update, _ = setting
    teacher = make_model(1)
    if broken == "current":
        teacher.lm_head.weight.data[0, 0] = float("nan")
    extrapolation = make(search=search, accept_ties=accept_ties, teacher=teacher)
    update()
    current = trainer.weights()
    if broken == "candidates":
        extrapolation.anchor = {
            name: torch.full_like(tensor, torch.inf) for name, tensor in extrapolation.anchor.items()
        }
    facts, _ = extrapolation(rollouts, 1)
    assert facts["coefficient"] == 0
    assert facts["accepted_coefficients"] == []
    assert all(torch.equal(tensor, current[name]) for name, tensor in trainer.weights().items())
    if broken == "current":
        assert facts["trial_coefficients"] == [0.0], "nothing is tried in vain"


def test_the_policy_is_judged_at_the_temperature_of_training(setting):
    _, rollouts, make, _, _ = setting
    teacher = make_model(0)
    teacher.lm_head.weight.data /= 2  # the student at temperature 2
    facts, _ = make(teacher=teacher, temperature=2.0)(rollouts, 1)
    assert facts["trial_values"][0] == pytest.approx(0, abs=1e-6)
    facts, _ = make(teacher=teacher)(rollouts, 1)
    assert facts["trial_values"][0] > 0.1


def test_a_teacher_whose_logits_are_large_is_asked_once(setting, monkeypatch):
    _, rollouts, make, update, _ = setting
    monkeypatch.setitem(ReverseKL.__init__.__kwdefaults__, "remembered_bytes", 0)
    teacher, calls = make_model(1), []
    teacher.model.register_forward_hook(lambda *_: calls.append(1))
    extrapolation = make(teacher=teacher)
    update()
    facts, (cost,) = extrapolation(rollouts, 1)
    chosen = rollouts.select(gate_rows(0, "rollouts", len(rollouts), 5, 1))
    assert len(facts["trial_values"]) > 2
    assert len(calls) == len(chosen.passes(BATCH_SIZE))
    assert cost["scored_tokens"] == chosen.completion_tokens
