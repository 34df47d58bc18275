"""Draws and updates of reinforcement learning: what is trained on, and what must not change it."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from effopd.common.errors import ConfigError
from effopd.data.rollouts import Rollouts
from effopd.models import lm_head as logits
from effopd.models.models import weights_of
from effopd.reinforcement.draws import Groups, Source, Validation, draw_minibatches
from effopd.reinforcement.updates import Updates
from effopd.reinforcement.value_head import PARAMETERS
from effopd.specs.engines import Sampling
from effopd.specs.read import read_spec
from effopd.stages.make_data import make_data
from effopd.stages.pretrain_model import pretrain_model
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.stages.train_rl import train_rl
from effopd.training import model_folder
from effopd.training.early_stopping import METRIC, EarlyStopping, best_step
from effopd.training.resume import ResumePoint
from effopd.training.trainer import Trainer, TrainerSettings
from effopd.workflow.job_specs import Plan
from rl_setup import CPU, SMALL, WAYS, FirstTokenTask, Setup, settings_of
from tiny_models import make_model


@pytest.mark.parametrize("way", WAYS)
def test_micro_batches_and_chunks_of_logits_do_not_change_a_step(way, tokenizer, monkeypatch):
    whole = Setup(way, tokenizer)
    drawn, _ = draw_minibatches(whole.trainer, whole.source, 1)
    before = weights_of(whole.model)
    facts = whole.step(1, drawn)
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights_of(whole.model).items())
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", 40)
    cut = Setup(way, tokenizer, micro_batch=3)
    assert cut.step(1, drawn) == pytest.approx(facts, rel=1e-3, abs=1e-5)
    for name, tensor in weights_of(whole.model).items():
        torch.testing.assert_close(weights_of(cut.model)[name], tensor, rtol=1e-3, atol=2e-5, msg=f"{way}: {name}")


def test_one_update_is_the_first_of_several_whose_ratios_are_one(tokenizer):
    """The plain policy gradient and the clipped surrogate have one gradient where the policy has not moved."""
    one, other = Setup("grpo", tokenizer), Setup("grpo", tokenizer)
    drawn, _ = draw_minibatches(one.trainer, one.source, 1)
    one.step(1, drawn)
    other.updates.single = False
    facts = other.step(1, drawn)
    assert facts["clip_share"] == 0
    for name, tensor in weights_of(one.model).items():
        torch.testing.assert_close(weights_of(other.model)[name], tensor, rtol=1e-4, atol=2e-6)


def test_clipping_acts_from_the_second_update_on(tokenizer):
    narrow = Setup("grpo_clipped", tokenizer)
    assert narrow.step(1)["clip_share"] > 0
    wide = Setup("grpo_clipped", tokenizer, clip_low=0.999, clip_high=1000.0)
    assert wide.step(1)["clip_share"] == 0
    assert any(not torch.equal(weights_of(wide.model)[n], t) for n, t in weights_of(narrow.model).items())


def test_dynamic_sampling_drops_groups_that_are_all_alike_and_draws_more(tokenizer):
    dapo = Setup("dapo", tokenizer, minibatches=1, max_draws=3)
    draws = [dapo.source.groups(1, range(4 * number, 4 * number + 4)) for number in range(3)]
    differ = [p for part in draws for p in part.positions if len(set(part.take([p]).rewards.tolist())) > 1]
    (trained,), facts = draw_minibatches(dapo.trainer, dapo.source, 1)
    assert facts["dropped_groups"] > 0, "nothing was dropped: the test proves nothing"
    assert trained.positions == differ[:4]
    made = draws[: facts["draws"]]
    assert facts["generated_tokens"] == sum(part.rollouts.completion_tokens for part in made)
    assert facts["dropped_groups"] == sum(p not in differ for part in made for p in part.positions)
    assert facts["reward"] == pytest.approx(torch.cat([part.rewards for part in made]).mean().item())
    assert len({json.dumps(prompt) for prompt in trained.rollouts.prompts}) == 4
    trained_on = dapo.step(1)["trained_tokens"]
    assert trained_on == 2 * trained.rollouts.completion_tokens, "two epochs over the groups that were kept"


DAPO = settings_of("dapo", samples_per_prompt=2)


class TellingSource(Source):
    """Groups whose rewards are alike or differ as the test says, without a model."""

    def __init__(self, settings, informative):
        self.settings, self.informative = settings, informative

    def groups(self, step, positions):
        size = self.settings.samples_per_prompt
        rewards = [float(self.informative[position] and not sample) for position in positions for sample in range(size)]
        count = len(rewards)
        rollouts = Rollouts([[2]] * count, [[3]] * count, [np.zeros(1, np.float32)] * count, [True] * count)
        return Groups(list(positions), rollouts, torch.tensor(rewards))


@pytest.fixture(scope="module")
def alone() -> Trainer:
    return Trainer(make_model(0), TrainerSettings(1e-3, (0.9, 0.999), 0.0, 1.0))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.lists(st.booleans(), min_size=24, max_size=24), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)
)  # fmt: skip
def test_a_step_of_dapo_keeps_the_first_informative_groups_and_never_more_than_it_asks_for(
    alone, informative, count, most, parts
):
    """By hand: batches of `count` prompts are drawn until `count` of them are informative, or `most` batches are."""
    asked = replace(DAPO, prompts_per_step=count, max_draws=most, minibatches=parts)
    minibatches, facts = draw_minibatches(alone, TellingSource(asked, informative), 1)
    drawn, kept = 0, []
    while drawn < most * count and len(kept) < count:
        kept += [position for position in range(drawn, drawn + count) if informative[position]]
        drawn += count
    trained = [position for groups in minibatches for position in groups.positions]
    assert trained == (kept[:count] or list(range(drawn - count, drawn)))
    assert len(trained) == facts["trained_groups"] <= count
    assert len(minibatches) <= parts
    assert max(len(g.positions) for g in minibatches) - min(len(g.positions) for g in minibatches) <= 1
    assert facts["draws"] == drawn / count
    assert facts["dropped_groups"] == drawn - len(kept)


def test_draws_are_bounded_and_a_step_without_an_informative_group_is_made_on_the_last(tokenizer):
    dapo = Setup("dapo", tokenizer, task=FirstTokenTask(right=""), max_draws=2, overlong_penalty=0.0, weight_decay=0.0)
    before = weights_of(dapo.model)
    facts = dapo.step(1)
    assert (facts["draws"], facts["dropped_groups"], facts["trained_groups"], facts["reward"]) == (2, 8, 4, 0.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_of(dapo.model).items())


def test_a_step_draws_the_same_whatever_other_steps_drew(tokenizer):
    one, other = Setup("dapo", tokenizer), Setup("dapo", tokenizer)
    draw_minibatches(one.trainer, one.source, 1)
    for groups in (draw_minibatches(s.trainer, s.source, 2)[0] for s in (one, other)):
        found = [[g.positions, g.rollouts.completions, g.rewards.tolist()] for g in groups]
    expected = draw_minibatches(other.trainer, other.source, 2)[0]
    assert found == [[g.positions, g.rollouts.completions, g.rewards.tolist()] for g in expected]


@pytest.mark.parametrize(("way", "room"), [("grpo", 7), ("dapo", 14)])
def test_steps_go_through_shuffled_epochs_of_the_prompts_from_the_first_on(way, room, tokenizer):
    """Each step has room for what it may draw, and together they pass over the 49 problems one by one."""
    changes = {"max_draws": 2, "overlong_buffer": 0} if way == "dapo" else {}
    source = Setup(way, tokenizer, prompts_per_step=7, samples_per_prompt=2, max_new_tokens=1, **changes).source
    seen = []
    for step in range(1, 98 // room + 1):
        prompts = [tuple(prompt) for prompt in source.groups(step, range(room)).rollouts.prompts]
        assert prompts[::2] == prompts[1::2]
        seen += prompts[::2]
    everything = sorted(map(tuple, source.prompts.tokens))
    assert sorted(seen[:49]) == sorted(seen[49:]) == everything
    assert seen[:49] != seen[49:]


def test_a_long_completion_loses_reward_and_one_cut_by_the_limit_all_of_the_penalty(tokenizer):
    dapo = Setup("dapo", tokenizer, max_new_tokens=20, overlong_buffer=16, overlong_penalty=0.5)
    groups = dapo.source.groups(1, range(8))
    lengths = [len(completion) for completion in groups.rollouts.completions]
    cut = [not finished for finished in groups.rollouts.finished]
    assert any(cut)
    assert len(set(lengths)) > 3
    shaped = dapo.updates._shaped(groups) - groups.rewards
    for penalty, length, over in zip(shaped.tolist(), lengths, cut, strict=True):
        assert penalty == pytest.approx(-0.5 * min(max(0.0, (length - 4) / 16), 1.0))
        assert not over or penalty == -0.5


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_advantages_and_returns_of_ppo_come_from_the_heads_values(tokenizer, temperature):
    """Against a loop over completions; a cut one has its verdict at its last token and nothing behind it."""
    ppo = Setup("ppo", tokenizer, gae_lambda=0.9, discount=0.95, epochs=1, minibatches=1, temperature=temperature)
    torch.nn.init.normal_(ppo.model.value_head.weight, std=0.1)
    groups = ppo.source.groups(1, range(4))
    (micro,) = ppo.updates._prepare(groups)
    start = 0
    for row, completion in enumerate(groups.rollouts.completions):
        ids = torch.tensor([groups.rollouts.prompts[row] + completion])
        with torch.no_grad():
            states = ppo.model.base_model(input_ids=ids).last_hidden_state[0]
            first, length = len(groups.rollouts.prompts[row]) - 1, len(completion)
            values = ppo.model.value_head(states)[first : first + length].tolist()
            policy, reference = (
                (m(input_ids=ids).logits[0] / temperature)
                .log_softmax(-1)[torch.arange(first, first + length), completion]
                .tolist()
                for m in (ppo.model, ppo.reference)
            )
        advantage, after = [0.0] * length, 0.0
        for t in reversed(range(length)):
            reward = -0.1 * (policy[t] - reference[t]) + (groups.rewards[row].item() if t == length - 1 else 0.0)
            delta = reward + 0.95 * (values[t + 1] if t + 1 < length else 0.0) - values[t]
            advantage[t] = after = delta + 0.95 * 0.9 * after
        own = slice(start, start + length)
        assert micro.advantages[own].tolist() == pytest.approx(advantage, abs=2e-4)
        assert micro.returns[own].tolist() == pytest.approx(
            [a + v for a, v in zip(advantage, values, strict=True)], abs=2e-4
        )
        start += length


def test_the_value_head_learns_what_the_verifier_said(tokenizer):
    ppo = Setup("ppo", tokenizer, gae_lambda=1.0, kl_coefficient=0, value_coefficient=1.0)
    drawn, _ = draw_minibatches(ppo.trainer, ppo.source, 1)
    explained = [ppo.step(1, drawn)["explained_variance"] for _ in range(12)]
    assert explained[0] == 0, "a new head says nothing"
    assert explained[-1] > 0.5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Data, prompts and a base model of the workflow, made by its stages."""
    folder = tmp_path_factory.mktemp("base")
    task = {"splits": {"train": 128, "validation": 16, "test": 16}, "corpus": {"size": 200}}
    small = {"hidden_size": 32, "intermediate_size": 48, "layers": 2, "head_dim": 8}
    models = {"base": {"kind": "pretrain", "steps": 3, **small}}

    def plan(**teacher):
        return Plan({"task": task, "models": {**models, "teacher": {**SMALL, **teacher}}, "runs": {"opd": {}}})

    made = plan(kind="grpo")
    data, model = folder / "data/manifest.json", folder / "model/manifest.json"
    prompts = folder / "data/prompts-base/manifest.json"
    make_data(read_spec("make_data", made.spec("make_data")), data)
    pretrain_model(read_spec("pretrain_model", made.spec("pretrain_model", model="base")), data, model, CPU)
    tokenize_prompts(read_spec("tokenize_prompts", made.spec("tokenize_prompts", model="base")), data, model, prompts)

    def train(out, **teacher):
        spec = read_spec("train_rl", plan(**teacher).spec("train_rl", model="teacher"))
        train_rl(spec, prompts, model, out / "manifest.json", CPU)
        return out

    return train


@pytest.mark.parametrize(
    ("accuracies", "taken", "over"),
    [((), 6, False), ((0.2,), 2, False), ((0.2, 0.3, 0.1), 4, False), ((0.3, 0.3, 0.2), 2, True)],
)
def test_training_is_over_after_evaluations_without_gain(accuracies, taken, over):
    rows = [{"step": step} for step in range(1, 7)]
    for number, accuracy in enumerate(accuracies, 1):
        rows[2 * number - 1][METRIC] = accuracy
    assert best_step(rows) == taken
    assert EarlyStopping(2, 2, 6, lambda trainer: 0.0).over(rows) == over


@pytest.mark.parametrize(("way", "zero_stage"), [("grpo", 0), ("ppo", 3)])
def test_the_model_is_that_of_the_best_evaluation(base, tmp_path, monkeypatch, way, zero_stage):
    """Through, and killed after the best step is known: the same bits as the checkpoint of that step."""
    seen = [0.1, 0.4, 0.2, 0.4, 0.9]
    told = []

    def accuracy(validation, trainer):
        told.append(None)
        return seen[len(told) - 1]

    stopping = {"every": 1, "patience": 2, "problems": 5}
    settings = {**WAYS[way], "steps": 8, "zero_stage": zero_stage, "early_stopping": stopping}
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "accuracy", accuracy)
        through = base(tmp_path / "through", **settings)
    facts = pd.read_parquet(through / "training.parquet")
    assert facts[METRIC].tolist() == seen[:4]
    manifest = json.loads((through / "manifest.json").read_text())
    assert manifest["result"]["steps"] == 2
    assert {path.name for path in (through / "checkpoints").iterdir()} == {"step1.safetensors", "step2.safetensors"}
    assert not (through / "best").exists()
    model, kept = load_file(through / "model.safetensors"), load_file(through / "checkpoints/step2.safetensors")
    assert model.keys() == kept.keys()
    assert all(torch.equal(model[name], kept[name]) for name in model)

    monkeypatch.setattr(model_folder, "RESUME_EVERY_SECONDS", 0.0)
    told.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "accuracy", accuracy)
        patch.setattr(model_folder, "save_model", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            base(tmp_path / "killed", **settings)
    told[:] = told[:3]  # its resume point is of step 3
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "accuracy", accuracy)
        resumed = load_file(base(tmp_path / "killed", **settings) / "model.safetensors")
    assert all(torch.equal(model[name], resumed[name]) for name in model)


def test_the_validation_accuracy_is_the_mean_reward_of_one_answer_each(tokenizer):
    """Against a loop over the problems; as often as it is asked, until the weights are others."""
    setup = Setup("grpo", tokenizer)
    validation = Validation(setup.source, setup.source.prompts, 20)
    rewards = []
    for tokens, seed in zip(validation.asked.tokens, validation.seeds, strict=True):
        (completion,) = setup.source.engine.generate([tokens], [seed], Sampling(1.0, 8)).completions
        rewards.append(float(tokenizer.decode(completion).startswith(tuple("01234"))))
    assert 0 < sum(rewards) < 20, "all alike: the test proves nothing"
    assert setup.accuracy(20) == setup.accuracy(20) == sum(rewards) / 20
    assert len(set(map(tuple, validation.asked.tokens))) == 20
    accuracies = {setup.accuracy(20)} | {(setup.step(number), setup.accuracy(20))[1] for number in (1, 2, 3)}
    assert len(accuracies) > 1
    with pytest.raises(
        ConfigError, match="`early_stopping.problems` of a model is 50, and the validation split holds 49"
    ):
        setup.accuracy(50)


def test_the_last_step_is_evaluated_too(base, tmp_path):
    stopping = {"every": 2, "patience": 2, "problems": 16}
    facts = pd.read_parquet(base(tmp_path, kind="grpo", steps=5, early_stopping=stopping) / "training.parquet")
    assert facts.loc[facts[METRIC].notna(), "step"].tolist() == [2, 4, 5]


def test_a_resumed_training_never_takes_weights_that_the_dead_attempt_found_better(base, tmp_path, monkeypatch):
    """On engines that are not bitwise a replayed evaluation can differ: here it is the best no more."""
    settings = {**WAYS["grpo"], "steps": 8, "early_stopping": {"every": 1, "patience": 2, "problems": 5}}
    monkeypatch.setattr(model_folder, "RESUME_EVERY_SECONDS", 0.0)
    save = ResumePoint.save

    def save_after_the_first_step_alone(self, weights, optimizer, rows):
        if len(rows) > 1:
            raise KeyboardInterrupt
        save(self, weights, optimizer, rows)

    with monkeypatch.context() as patch:
        told = iter([0.3, 0.9])
        patch.setattr(Validation, "accuracy", lambda validation, trainer: next(told))
        patch.setattr(ResumePoint, "save", save_after_the_first_step_alone)
        with pytest.raises(KeyboardInterrupt):
            base(tmp_path, **settings)
    assert (tmp_path / "best/step2.safetensors").is_file()
    with monkeypatch.context() as patch:
        told = iter([0.2, 0.1])
        patch.setattr(Validation, "accuracy", lambda validation, trainer: next(told))
        base(tmp_path, **settings)
    assert json.loads((tmp_path / "manifest.json").read_text())["result"]["steps"] == 1
    model, first = load_file(tmp_path / "model.safetensors"), load_file(tmp_path / "checkpoints/step1.safetensors")
    assert all(torch.equal(model[name], first[name]) for name in model)


@pytest.mark.parametrize("way", ["dapo", "ppo"])
@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_killed_training_goes_on_to_the_same_bits_and_the_head_is_not_saved(
    base, tmp_path, monkeypatch, way, zero_stage
):
    settings = {**WAYS[way], "steps": 4, "zero_stage": zero_stage}
    through = base(tmp_path / "through", **settings)
    monkeypatch.setattr(model_folder, "RESUME_EVERY_SECONDS", 0.0)
    call = Updates.__call__
    calls = []

    def killed(self, *arguments):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Updates, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            base(tmp_path / "killed", **settings)
    saved = load_file(tmp_path / "killed/resume.safetensors")
    wanted = {f"{part}.{name}" for name in PARAMETERS for part in ("weights", "exp_avg", "exp_avg_sq")}
    assert (wanted <= saved.keys()) == (way == "ppo")
    resumed = base(tmp_path / "killed", **settings)
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "training.parquet") for f in (through, resumed)))
    for name in ("model.safetensors", "checkpoints/step2.safetensors", "checkpoints/step4.safetensors"):
        one, other = load_file(through / name), load_file(resumed / name)
        assert one.keys() == other.keys()
        assert not any("value_head" in key for key in one)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    _, info = AutoModelForCausalLM.from_pretrained(resumed, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    facts = pd.read_parquet(resumed / "training.parquet")
    assert facts["step"].tolist() == [1, 2, 3, 4]
    assert all(math.isfinite(value) for value in facts.to_numpy().flatten())
    assert facts["kl"].iloc[0] == pytest.approx(0, abs=1e-6), "nothing has been learnt before the first step"
