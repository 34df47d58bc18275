"""The DeepSpeed trainer against plain torch, and what must not change a step."""

from dataclasses import replace

import pytest
import torch

from effopd.common.errors import DivergenceError
from effopd.models.models import load_weights_into, weights_of
from effopd.training.trainer import OptimizerState, Trainer, warmed_up
from tiny_models import make_model
from trainer_data import SETTINGS, data, loss_and_metrics, loss_of


def test_steps_equal_plain_adamw(model):
    plain = make_model(0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    trainer = Trainer(model, SETTINGS)
    for step in range(5):
        lr = 1e-3 * (step + 1)
        facts, _ = trainer.step([data(step)], loss_and_metrics, lr)
        loss = loss_of(plain, data(step))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        assert facts["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert facts["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    for name, tensor in weights_of(plain).items():
        torch.testing.assert_close(weights_of(model)[name], tensor, rtol=1e-5, atol=1e-6)


def test_micro_batches_add_up_to_the_whole_batch(model):
    whole, split = Trainer(make_model(0), SETTINGS), Trainer(model, SETTINGS)
    for step in range(3):
        a, _ = whole.step([data(step)], loss_and_metrics, 1e-3)
        b, metrics = split.step([data(step)[:3], data(step)[3:4], data(step)[4:]], loss_and_metrics, 1e-3)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-4)
        assert [part["rows"].item() for part in metrics] == [3, 1, 4]
    for name, tensor in weights_of(whole.model).items():
        torch.testing.assert_close(weights_of(model)[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_resumed_trainer_goes_on_bitwise():
    through = Trainer(make_model(0), SETTINGS)
    for step in range(6):
        through.step([data(step)], loss_and_metrics, 1e-3)
        if step == 2:
            weights, optimizer = weights_of(through.model), through.optimizer_state()
    resumed = Trainer(make_model(5), SETTINGS)
    load_weights_into(resumed.model, weights)
    resumed.load_optimizer_state(optimizer)
    for step in range(3, 6):
        resumed.step([data(step)], loss_and_metrics, 1e-3)
    for name, tensor in weights_of(through.model).items():
        assert torch.equal(weights_of(resumed.model)[name], tensor), name
    assert resumed.optimizer_state().step == 6
    for name, tensor in through.optimizer_state().moments.items():
        assert torch.equal(resumed.optimizer_state().moments[name], tensor), name


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(model):
    before = weights_of(model)
    trainer = Trainer(model, SETTINGS)
    with pytest.raises(DivergenceError, match=r"loss of optimizer step 1 is nan. Lower `lr` \(now 0.001\)"):
        trainer.step([data(0)], lambda m, t: (loss_of(m, t) * float("nan"), {}), 1e-3)
    for name, tensor in weights_of(model).items():
        assert torch.equal(before[name], tensor)


def test_the_optimizer_state_is_a_copy(model):
    trainer = Trainer(model, SETTINGS)
    trainer.step([data(0)], loss_and_metrics, 1e-3)
    state: OptimizerState = trainer.optimizer_state()
    kept = {name: tensor.clone() for name, tensor in state.moments.items()}
    trainer.step([data(1)], loss_and_metrics, 1e-3)
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.moments.items())


@pytest.mark.parametrize("stage", [0, 1])
def test_what_is_borrowed_equals_the_copies_and_is_none_where_it_lies_in_one_piece(stage):
    trainer = Trainer(make_model(0), replace(SETTINGS, zero_stage=stage))
    trainer.step([data(0)], loss_and_metrics, 1e-3)
    copies, moments = trainer.weights(), trainer.optimizer_state().moments
    borrowed, lent = trainer.weights(borrowed=True), trainer.optimizer_state(borrowed=True).moments
    own = dict(trainer.model.named_parameters())
    for name, tensor in borrowed.items():
        assert torch.equal(tensor, copies[name])
        assert copies[name].data_ptr() != own[name].data_ptr()
        assert (tensor.data_ptr() == own[name].data_ptr()) == (stage == 0)
    assert lent.keys() == moments.keys()
    assert all(torch.equal(lent[name], moments[name]) for name in lent)


def test_warm_up_is_linear_then_constant():
    assert [warmed_up(2.0, step, 4) for step in (1, 2, 4, 5, 100)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert warmed_up(2.0, 1, 0) == 2.0


def test_zero_with_one_rank_is_plain_training_and_resumes_bitwise():
    """Masters, moments and step in and out by name, from flat parts of any stage (ZeRO 3: test_two_ranks.py)."""
    plain = Trainer(make_model(0), SETTINGS)
    through = Trainer(make_model(0), replace(SETTINGS, zero_stage=2))
    for step in range(4):
        facts = [trainer.step([data(step)], loss_and_metrics, 1e-3)[0] for trainer in (plain, through)]
        assert facts[0] == pytest.approx(facts[1], rel=1e-5)
        if step == 1:
            weights, optimizer = through.weights(), through.optimizer_state()
    for name, tensor in plain.weights().items():
        torch.testing.assert_close(through.weights()[name], tensor, rtol=1e-5, atol=1e-7)
    resumed = Trainer(make_model(5), replace(SETTINGS, zero_stage=2))
    resumed.load_weights(weights)
    resumed.load_optimizer_state(optimizer)
    for step in (2, 3):
        resumed.step([data(step)], loss_and_metrics, 1e-3)
    for tensors in ("weights", "moments"):
        theirs, ours = ({**t.weights(), **t.optimizer_state().moments} for t in (through, resumed))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), tensors


def test_bf16_computes_in_bf16_and_keeps_small_updates_in_float32():
    settings = replace(SETTINGS, zero_stage=1, precision="bfloat16", weight_decay=0.0)
    start = weights_of(make_model(0))
    trainer = Trainer(make_model(0), settings)
    assert all(torch.equal(trainer.weights()[name], start[name]) for name in start), "rounding before the first step"
    for step in range(3):
        trainer.step([data(step)], loss_and_metrics, 1e-6)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16}
    moved = trainer.weights()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert 0 < (moved[name] - start[name]).abs().max() < 1e-5
    same = (moved[name].bfloat16() == start[name].bfloat16()).float().mean()
    assert same > 0.9, "these updates are below bf16's resolution, and are not lost"
    with pytest.raises(DivergenceError, match="gradient of optimizer step 4 has norm inf"):
        trainer.step([data(0)], lambda m, t: ((loss_of(m, t) * 0).sqrt(), {}), 1e-6)
    assert all(torch.equal(trainer.weights()[name], moved[name]) for name in moved)


def test_after_a_jump_moments_are_kept_or_weigh_less_or_begin_anew():
    def trained() -> Trainer:
        trainer = Trainer(make_model(0), SETTINGS)
        for step in range(3):
            trainer.step([data(step)], loss_and_metrics, 1e-3)
        return trainer

    before = trained().optimizer_state()
    for moments, factor, steps in (("kept", 1, 3), ("scaled", 1 / 9, 3), ("reset", 0, 0)):
        trainer = trained()
        trainer.rescale_optimizer_state(moments, -8.0)
        after = trainer.optimizer_state()
        assert after.step == steps
        for name, tensor in before.moments.items():
            power = 2 if name.startswith("exp_avg_sq.") else 1
            torch.testing.assert_close(after.moments[name], tensor * factor**power)
    # Begun anew, it goes on as a new one would from these weights, also when its state is saved and loaded.
    new = Trainer(make_model(1), SETTINGS)
    new.load_weights(trainer.weights())
    loaded = Trainer(make_model(1), SETTINGS)
    loaded.load_weights(trainer.weights())
    loaded.load_optimizer_state(trainer.optimizer_state())
    for one in (trainer, new, loaded):
        one.step([data(7)], loss_and_metrics, 1e-3)
    for one in (new, loaded):
        assert all(torch.equal(tensor, trainer.weights()[name]) for name, tensor in one.weights().items())


def test_zero_3_changes_nothing_for_other_models_of_the_process():
    """DeepSpeed replaces torch's linear map, and leaves its own there."""
    plain, seen = torch.nn.functional.linear, []
    trainer = Trainer(make_model(0), replace(SETTINGS, zero_stage=3))
    assert torch.nn.functional.linear is plain

    def seeing_loss(model, tokens):
        seen.append(torch.nn.functional.linear)
        return loss_and_metrics(model, tokens)

    trainer.step([data(0)], seeing_loss, 1e-3)
    assert torch.nn.functional.linear is plain
    assert [function is plain for function in seen] == [False], "its own frees gathered weights: steps need it"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_moments_are_loaded_any_number_of_times(stage):
    """What the optimizer goes on with, and what is saved next, is what was loaded last."""
    settings = replace(SETTINGS, zero_stage=stage)
    donor = Trainer(make_model(0), settings)
    states = []
    for step in range(3):
        donor.step([data(step)], loss_and_metrics, 1e-3)
        states.append((donor.weights(), donor.optimizer_state()))
    trainer = Trainer(make_model(5), settings)
    for weights, state in (states[2], states[0], states[1]):
        trainer.load_weights(weights)
        trainer.load_optimizer_state(state)
        found = trainer.optimizer_state()
        assert found.step == state.step
        assert all(torch.equal(found.moments[name], tensor) for name, tensor in state.moments.items())
    trainer.step([data(2)], loss_and_metrics, 1e-3)
    assert all(torch.equal(trainer.weights()[name], tensor) for name, tensor in states[2][0].items())
