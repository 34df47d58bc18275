"""Triggers on a run on disk: from where an update is measured, what training goes on from, and what a resume knows."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from effopd.distillation import step as distillation
from effopd.distillation.learner import Learner
from effopd.extrapolation.candidates import candidate
from effopd.models.models import load_tensors, weights_of
from effopd.stages import segments
from effopd.training.checkpoints import METRICS, WEIGHTS, Point
from effopd.training.trainer import Trainer, TrainerSettings
from small_run import CPU, SmallRun, moved
from tiny_models import make_model
from trainer_data import data, loss_and_metrics

GATE = {"metric": "reverse_kl", "examples": 6}
EVERY_STEP = {
    "triggers": "every_step",
    "search": "line",
    "accept_ties": False,
    "gate": {"metric": "always", "source": "rollouts", "examples": 4},
}


@pytest.mark.parametrize("anchor", ["accepted", "raw"])
def test_the_ray_begins_where_the_configuration_says(tmp_path, anchor):
    """The teacher stands on the ray from the raw weights, or on that from the accepted ones: each is found by its own."""
    raw = moved(weights_of(make_model(0)), 1)
    accepted, current = moved(raw, 2), moved(raw, 3)
    origin = raw if anchor == "raw" else accepted
    teacher = candidate(current, origin, 2.0, list(current))
    settings = {"anchor": anchor, "parameters": "all", "search": "all", "accept_ties": False, "gate": GATE}
    run = SmallRun(tmp_path, teacher, extrapolation={"coefficients": [1, 2, 3], **settings})
    run.write_state(1, raw)
    run.write_decision(1, 4.0, accepted)
    run.write_state(2, current)
    decision = run.decide(2, anchor=1)
    assert decision.result["coefficient"] == 2
    assert decision.result["trials"][1]["value"] == pytest.approx(0, abs=1e-6)
    assert decision.result["current"]["value"] > 1e-4
    distance = sum(((current[n] - origin[n]).double() ** 2).sum().item() for n in current) ** 0.5
    assert decision.result["update_norm"]["all"] == pytest.approx(distance, rel=1e-6)
    selected = load_tensors(decision.file(WEIGHTS))
    assert all(torch.equal(selected[name], tensor) for name, tensor in teacher.items())
    assert all(torch.equal(Point.open(run.state(2), decision.path).weights()[n], t) for n, t in teacher.items())


@pytest.mark.parametrize(("moments", "factor", "steps"), [("kept", 1, 3), ("scaled", 1 / 5, 3), ("reset", 0, 0)])
@pytest.mark.parametrize("jumped", [True, False])
def test_after_a_trigger_training_goes_on_with_the_moments_that_the_configuration_says(
    tmp_path, moments, factor, steps, jumped
):
    run = SmallRun(tmp_path, extrapolation={"moments": moments, "gate": GATE})
    trained = Trainer(make_model(0), TrainerSettings(1e-3, (0.9, 0.999), 0.0, 1.0))
    for step in range(3):
        trained.step([data(step)], loss_and_metrics, 1e-3)
    before, accepted = trained.optimizer_state(), moved(trained.weights(), 4)
    run.write_state(2, trained.weights(), before)
    run.write_decision(2, -4.0 if jumped else 0.0, accepted)
    spec = run.of_step("train_segment", 4)
    learner = Learner(spec, run.open(2), CPU)
    trainer = learner.trainer
    after, weights = trainer.optimizer_state(), trainer.weights()
    assert all(torch.equal(weights[n], t) for n, t in (accepted if jumped else trained.weights()).items())
    assert after.step == (steps if jumped else 3)
    for name, tensor in before.moments.items():
        power = 2 if name.startswith("exp_avg_sq.") else 1
        wanted = tensor * factor**power if jumped else tensor
        torch.testing.assert_close(after.moments[name], wanted)


@pytest.mark.parametrize(
    ("coefficient", "rows", "start"),
    [
        (None, [], 1.0),  # the first step of a run
        (8.0, [], 8.0),  # the first step of a segment: where the last one's last search ended
        (8.0, [{"coefficient": 2.0}, {"coefficient": 32.0}], 32.0),  # the middle of one that was killed
        (8.0, [{"coefficient": 0.0}], 1.0),
    ],
)
def test_a_line_search_goes_on_from_the_last_coefficient_in_the_next_segment_and_after_a_kill(
    tmp_path, coefficient, rows, start
):
    run = SmallRun(tmp_path, extrapolation=EVERY_STEP)
    if coefficient is not None:
        run.write_state(2, weights_of(make_model(0)), coefficient=coefficient)
    learner = Learner(run.of_step("train_segment", 4), run.open(0 if coefficient is None else 2), CPU)
    learner.trainer = Trainer(make_model(0), TrainerSettings(1e-3, (0.9, 0.999), 0.0, 1.0))
    extrapolate = learner.extrapolation(rows)
    tokens = [[5, 8, 3], [9, 4]]
    rollouts = distillation.generate_rollouts(
        learner.engine(tokens, make_model(0)), tokens, replace(learner.training, prompts_per_step=2), 0, 3
    )
    facts, _ = extrapolate(rollouts, 3)
    assert facts["trial_coefficients"][1] == start


def test_a_killed_segment_that_extrapolates_every_step_ends_with_the_bits_of_one_that_was_not(tmp_path, monkeypatch):
    """Two segments, the second killed in its middle: metrics of every step, and the weights."""
    gate = {"metric": "reverse_kl", "source": "rollouts", "examples": 4}
    training = {"steps": 5, "checkpoint_steps": [1]}
    settings = {"training": training, "extrapolation": {**EVERY_STEP, "gate": gate}}
    through, killed = (SmallRun(tmp_path / name, **settings) for name in ("through", "killed"))
    for run in (through, killed):
        run.train(1)
    wanted = through.train(5)
    update = distillation.update_policy

    def until_the_fourth(trainer, rollouts, scores, training, step, *others):
        if step == 4:
            raise KeyboardInterrupt
        return update(trainer, rollouts, scores, training, step, *others)

    monkeypatch.setattr(segments, "RESUME_EVERY_SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distillation, "update_policy", until_the_fourth)
        killed.train(5)
    found = killed.train(5)
    rows, others = (pd.read_parquet(state.file(METRICS)) for state in (wanted, found))
    pd.testing.assert_frame_equal(rows, others)
    starts = [trials[1] for trials in rows["trial_coefficients"]]
    ends = rows["coefficient"].tolist()
    assert any(end > 0 and end != 1 for end in ends[:-1]), "every search started at 1: the test proves nothing"
    assert starts[1:] == [end if end > 0 else 1.0 for end in ends[:-1]]
    weights, same = (load_tensors(state.file(WEIGHTS)) for state in (wanted, found))
    assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())
