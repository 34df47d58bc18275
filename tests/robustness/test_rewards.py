"""Reward functions of any form: the gate's numbers are those of TRL's own code, or one clear line names the function."""

from __future__ import annotations

import functools
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import TrainerState
from trl import GRPOConfig, GRPOTrainer

from effopd.common.errors import UserError
from effopd.data.rollouts import Rollouts
from effopd.extrapolation.gate import GateValue
from effopd.integrations.gates import AccuracyGate, checked_value
from effopd.integrations.rewards import RewardFunctions
from effopd.integrations.transformers import EffOPDCallback
from effopd.tasks.base import build_task
from tiny_models import TASK_SECTION, make_model
from trl_runs import arguments

PROMPTS = ["1+2=", "3+4=", "5+6=", "7+8="]
COMPLETIONS = ["3", "7#", "", "1 5"]
IDS = [[5, 1], [9, 2, 1], [1], [3, 4, 7]]
COLUMNS = {"answer": [3, 7, 11, 15], "prompt": PROMPTS, "level": ["a", "b", None, "d"]}
VALUES = [0.5, 1.0, 0.0, -2.25]


@pytest.fixture(scope="module")
def tokenizer():
    return build_task(TASK_SECTION).make_tokenizer()


async def later(completions, **_):
    return [len(text) for text in completions]


def lengths(completions, **_):
    return [float(len(text)) for text in completions]


def some(completions, **_):
    return [None, 1.0, None, 2.0]


class Judge:
    def __call__(self, prompts, completions, completion_ids, answer, **_):
        return [a / len(ids) for a, ids in zip(answer, completion_ids, strict=True)]


class AsyncJudge:
    async def __call__(self, completions, **_):
        return np.array([len(text) / 2 for text in completions])


def scaled(factor, completions, **_):
    return [factor * len(text) for text in completions]


async def scaled_later(factor, completions, **_):
    return [factor * len(text) for text in completions]


def with_everything(prompts, completions, completion_ids, answer, level, trainer_state, log_extra, log_metric):
    log_extra("level", level)
    log_metric("accuracy", 0.5)
    return [trainer_state.global_step + a + len(ids) for a, ids in zip(answer, completion_ids, strict=True)]


def greedy(prompts, completions, completion_ids, answer, **_):
    """Takes apart what it is given."""
    found = [answer.pop(0) + completion_ids[row].pop() for row in range(len(completions))]
    completions.clear()
    return found


def giving(value):
    def gives(**_):
        return value() if callable(value) else value

    return gives


GOOD = {
    "floats": giving(VALUES),
    "integers": giving([1, 0, -3, 7]),
    "booleans": giving([True, False, True, True]),
    "a tuple": giving(tuple(VALUES)),
    "a generator": giving(lambda: (value for value in VALUES)),
    "a dict's values": giving(dict(enumerate(VALUES)).values()),
    "an array": giving(np.array(VALUES)),
    "an array of float32": giving(np.array(VALUES, np.float32)),
    "an array of booleans": giving(np.array([True, False, True, True])),
    "an array of int8": giving(np.array([1, 2, 3, 4], np.int8)),
    "NumPy's scalars": giving([np.float64(0.5), np.int64(2), np.bool_(True), np.float16(0.25)]),
    "a tensor": giving(torch.tensor(VALUES)),
    "a bfloat16 tensor": giving(torch.tensor(VALUES, dtype=torch.bfloat16)),
    "a tensor of integers": giving(torch.arange(4)),
    "torch's scalars": giving([torch.tensor(value) for value in VALUES]),
    "tensors of one element": giving([torch.tensor([value]) for value in VALUES]),
    "a tensor with a gradient": giving(torch.tensor(VALUES, requires_grad=True)),
    "a series": giving(pd.Series(VALUES)),
    "fractions": giving([Fraction(1, 3), Fraction(1, 2), 0, 1]),
    "decimals": giving([Decimal("0.5"), Decimal(1), 0, 1]),
    "None for some": some,
    "None for all": giving([None] * 4),
    "NaN for some": giving([math.nan, 1.0, np.nan, torch.tensor(math.nan)]),
    "a partial": functools.partial(scaled, 3),
    "a partial of a partial": functools.partial(functools.partial(scaled, factor=3)),
    "an object": Judge(),
    "an async function": later,
    "an async partial": functools.partial(scaled_later, 0.5),
    "an async object": AsyncJudge(),
    "one that takes all that there is": with_everything,
    "one that changes what it is given": greedy,
    "a lambda": lambda completions, **_: [len(text) for text in completions],
    "two": [lengths, some],
    "two of which none fits": [some, some],
    "three, weighted": ([lengths, some, later], [0.5, -2.0, 0.0]),
    "several async": ([later, AsyncJudge(), functools.partial(scaled_later, 2), Judge()], [1.0, 2.0, 3.0, 4.0]),
}


@pytest.fixture(scope="module")
def trainer(tokenizer, tmp_path_factory):
    """TRL's own trainer, which can await functions."""
    return GRPOTrainer(
        model=make_model(0, len(tokenizer)),
        reward_funcs=[later],
        args=GRPOConfig(**arguments(tmp_path_factory.mktemp("grpo"), 1, num_generations=2)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )


def rewards_of_trl(trainer, functions, weights):
    """What TRL makes of reward functions: their weighted sum, NaN if none gave a reward."""
    trainer.reward_funcs = functions
    trainer.reward_processing_classes = [None] * len(functions)
    trainer.reward_func_names = [str(place) for place in range(len(functions))]
    inputs = [{"prompt": PROMPTS[row], **{name: COLUMNS[name][row] for name in COLUMNS}} for row in range(len(PROMPTS))]
    found = trainer._calculate_rewards(inputs, list(PROMPTS), list(COMPLETIONS), [list(ids) for ids in IDS])
    total = (found * torch.tensor(weights)).nansum(dim=1)
    total[found.isnan().all(dim=1)] = torch.nan
    return total.numpy()


@pytest.mark.parametrize("case", GOOD)
def test_rewards_are_those_of_trl(trainer, case):
    functions, weights = GOOD[case] if isinstance(GOOD[case], tuple) else (GOOD[case], None)
    as_list = functions if isinstance(functions, list) else [functions]
    state = TrainerState(global_step=trainer.state.global_step)
    rewards = RewardFunctions(functions, weights, COLUMNS)
    right = rewards_of_trl(trainer, as_list, weights or [1.0] * len(as_list))
    for _ in range(2):  # a gate asks again and again
        found = rewards(PROMPTS, COMPLETIONS, IDS, state)
        assert all(type(value) is float for value in found)
        np.testing.assert_allclose(found, right, rtol=1e-6)


BAD = {
    "too few": giving(VALUES[:3]),
    "too many": giving([*VALUES, 1.0]),
    "none": giving([]),
    "nothing": giving(None),
    "one number": giving(1.0),
    "one tensor": giving(torch.tensor(1.0)),
    "text": giving("1010"),
    "bytes": giving(b"1010"),
    "a dict": giving(dict(enumerate(VALUES))),
    "a set, which has no order": giving(set(range(4))),
    "texts": giving(["0.5"] * 4),
    "lists": giving([[0.5]] * 4),
    "a table": giving(np.zeros((4, 2))),
    "complex numbers": giving([1j] * 4),
    "objects": giving([object()] * 4),
    "infinity": giving([1.0, math.inf, 0.0, 0.0]),
    "less than infinity": giving(np.array([1.0, -np.inf, 0.0, 0.0])),
    "a number of 400 digits": giving([1, 10**400, 0, 0]),
    "a number of 5000 digits": giving([1, 10**5000, 0, 0]),
    "a coroutine that nobody awaits": lambda **arguments: later(**arguments),
    "too few, later": AsyncJudge,
}


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("case", BAD)
def test_what_is_no_reward_is_refused_by_name(case):
    function = BAD[case]
    if case == "too few, later":

        async def gives(**_):
            return VALUES[:3]

        function = gives
    with pytest.raises(UserError) as caught:
        RewardFunctions([lengths, function], None, COLUMNS)(PROMPTS, COMPLETIONS, IDS, TrainerState())
    line = str(caught.value)
    assert f"the reward function `{function.__name__}` returned" in line
    assert line.isprintable()
    assert len(line) < 400


@pytest.mark.parametrize(
    ("functions", "weights", "columns", "said"),
    [
        ("accuracy_reward", None, {}, "of type str"),
        ([lengths, None], None, {}, "of type NoneType"),
        (torch.nn.Linear(1, 1), None, {}, "of type Linear"),
        ([], None, {}, "0 reward functions"),
        ([lengths, later], [1.0], {}, "2 reward functions and 1 weights"),
        ([lengths], [], {}, "1 reward functions and 0 weights"),
        ([lengths], 5, {}, "weights are 5, not a list. Give a list with one finite number"),
        ([lengths], torch.tensor(5.0), {}, "not a list"),
        ([lengths], "1", {}, "weights are '1', not a list"),
        ([lengths], {0: 1.0}, {}, "not a list"),
        ([lengths, later], [1.0, math.nan], {}, "weight 1 is nan. Give a list with one finite number"),
        ([lengths], [-math.inf], {}, "weight 0 is -inf"),
        ([lengths], [None], {}, "weight 0 is null, not a number"),
        ([lengths], ["1"], {}, "weight 0 is '1'"),
        ([lengths], None, {"completions": [1]}, "the gate's column 'completions'"),
    ],
)
def test_what_cannot_judge_is_refused_at_once(functions, weights, columns, said):
    with pytest.raises(UserError, match=said):
        RewardFunctions(functions, weights, columns)


def test_a_sum_beyond_all_numbers_is_refused():
    with pytest.raises(UserError, match="the weighted sum of the rewards of gives, gives is inf"):
        RewardFunctions([giving([1e308] * 4)] * 2, None, {})(PROMPTS, COMPLETIONS, IDS, TrainerState())


def gate_of(tokenizer, reward, prompts=PROMPTS, **settings):
    return AccuracyGate(prompts, reward, tokenizer, max_new_tokens=8, examples=len(prompts), **settings)


def test_completions_are_decoded_as_trl_does(tokenizer):
    ids = [[5, 1], [9, 0, 1], [1], [3, 4, 7]]
    rollouts = Rollouts([[5]] * 4, ids, [np.zeros(len(row), np.float32) for row in ids], [True, True, True, False])
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert gate_of(tokenizer, lengths)._completions(rollouts) == texts
    assert not any("</s>" in text or "<" in text for text in texts)
    gate = gate_of(tokenizer, lengths)
    gate.prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    assert gate._completions(rollouts) == [[{"role": "assistant", "content": text}] for text in texts]


def test_a_gate_without_a_reward_for_each_completion_accepts_nothing(tokenizer, tmp_path, capsys):
    def sometimes(completions, trainer_state, **_):
        assert (trainer_state.global_step, trainer_state.max_steps) == (1, 1), "the state of the trainer itself"
        return [None if len(text) > 3 else 1.0 for text in completions]

    callback = EffOPDCallback(gate_of(tokenizer, sometimes), triggers=[1], accept_ties=False)
    asked = []

    def reward(completions, completion_ids, **columns):
        asked.append(set(columns))
        return [float(len(ids)) for ids in completion_ids]

    training = gate_of(tokenizer, reward)
    GRPOTrainer(
        model=make_model(0, len(tokenizer)),
        reward_funcs=[reward, later],
        args=GRPOConfig(**arguments(tmp_path, 1, num_generations=2)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
        callbacks=[callback],
    ).train()
    (decision,) = callback.decisions
    assert decision["current"]["value"] is None
    assert decision["coefficient"] == 0
    assert "completions got no reward from sometimes" in capsys.readouterr().err
    training(make_model(0, len(tokenizer)), 1, 0.0)
    assert asked[0] == asked[-1], "the gate gives it the same arguments as the trainer"


@pytest.mark.parametrize(
    "found",
    [0.5, 1, True, np.float32(0.5), torch.tensor(0.5), math.nan, -math.inf, GateValue(1, np.float32(2), np.ones(3))],
)
def test_a_gate_may_return_any_number(found):
    value = checked_value(found, "mine")
    assert type(value.value) is type(value.score) is float
    assert all(type(item) is float for item in value.per_item)


@pytest.mark.parametrize(
    "found", [None, "0.5", [0.5], torch.zeros(3), 1j, GateValue(None, 1.0), GateValue(1.0, 1.0, ["x"]), 10**400]
)
def test_a_gate_that_returns_no_number_is_named(found):
    with pytest.raises(UserError, match="the gate `mine` returned no number: "):
        checked_value(found, "mine")


def test_a_column_of_another_length_is_named(tokenizer):
    with pytest.raises(UserError, match="column 'answer' has 3 rows, and there are 4 prompts"):
        gate_of(tokenizer, lengths, columns={"answer": [1, 2, 3]})
