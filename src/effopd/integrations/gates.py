"""Gates for EffOPDCallback: accuracy by a reward function, and the exact reverse KL to a teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerState

from effopd.artifacts.cost import cost_row
from effopd.common.errors import UserError
from effopd.common.progress import say
from effopd.data.checked_numbers import NumberError, number
from effopd.data.rollouts import Rollouts
from effopd.engines.base import longest_context
from effopd.engines.transformers_engine import TransformersEngine
from effopd.extrapolation.gate import GateValue, gate_rows, gate_seeds
from effopd.integrations.master_weights import rank, ranks
from effopd.integrations.rewards import RewardFunctions
from effopd.models.models import special_ids
from effopd.specs.engines import Sampling
from effopd.teachers.scoring import measure_reverse_kl

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]  # text, token ids, or chat messages
# (model, step, coefficient) -> how good the model is with the weights that are in it: a candidate's, or at coefficient
# 0 those of the step. Of a plain number more is better.
Judge = Callable[[PreTrainedModel, int, float], GateValue | float]


class _SampledGate:
    """Samples completions of a fixed choice of prompts from the weights that it is to judge.

    `examples` of the prompts are drawn once, by `seed` (as the workflow draws them from the split `source`), each
    answered `samples` times. `paired`: all candidates of a trigger meet the same random numbers, which takes most of
    the noise out of their comparison. Raises UserError if there are too few prompts.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        examples: int = 50,
        samples: int = 1,
        paired: bool = True,
        seed: int = 0,
        source: str = "train",
        batch_size: int | None = None,
    ) -> None:
        if examples > len(prompts):
            raise UserError(f"the gate's `examples` is {examples}, and there are {len(prompts)} prompts. Lower it.")
        self.rows = gate_rows(seed, source, len(prompts), examples, samples)
        self.prompts = [prompts[row] for row in self.rows]
        self.tokens = [_encoded(tokenizer, prompt) for prompt in self.prompts]
        self.tokenizer, self.sampling = tokenizer, Sampling(temperature, max_new_tokens)
        self.paired, self.seed, self.batch_size = paired, seed, batch_size or len(self.rows)

    def _sample(self, model: PreTrainedModel, step: int, coefficient: float) -> Rollouts:
        context = longest_context(self.tokens, self.sampling.max_new_tokens)
        engine = TransformersEngine.of(
            inside(model), self.tokenizer, batch_size=self.batch_size, context=context, dtype="float32"
        )
        seeds = gate_seeds(self.seed, step, coefficient, len(self.rows), self.paired)
        return engine.generate(self.tokens, seeds, self.sampling)


class AccuracyGate(_SampledGate):
    """The mean reward of sampled completions (the paper's gate).

    `reward` is a reward function of TRL or a list of them, of which the sum counts, weighted by `weights` (default: 1
    each). They are called as TRL calls them; `columns` are columns of the data set as long as `prompts` (reference
    answers, say). A completion without a reward (None from every function) makes the value NaN, which is never
    accepted.
    """

    metric = "accuracy"

    def __init__(
        self,
        prompts: Sequence[Prompt],
        reward: Any,
        tokenizer: PreTrainedTokenizerFast,
        *,
        weights: Sequence[float] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(prompts, tokenizer, **settings)
        for name, column in (columns or {}).items():
            if len(column) != len(prompts):
                raise UserError(
                    f"the gate's column {name!r} has {len(column)} rows, and there are {len(prompts)} prompts. Give "
                    "one row for each prompt."
                )
        chosen = {name: [column[row] for row in self.rows] for name, column in (columns or {}).items()}
        self.rewards = RewardFunctions(reward, weights, chosen)
        self.trainer_state: TrainerState | None = None  # of the Trainer that it judges for; EffOPDCallback sets it

    def __call__(self, model: PreTrainedModel, step: int, coefficient: float) -> GateValue:
        rollouts = self._sample(model, step, coefficient)
        state = self.trainer_state or TrainerState(global_step=step)
        rewards = self.rewards(self.prompts, self._completions(rollouts), rollouts.completions, state)
        missing = sum(map(math.isnan, rewards))
        if missing and rank() == 0:
            say(
                f"effopd: step {step}: {missing} of {len(rewards)} completions got no reward from "
                f"{', '.join(self.rewards.names)}: coefficient {coefficient:g} is not accepted. Give the gate prompts "
                "for whose completions there is always a reward."
            )
        finite = all(np.isfinite(row).all() for row in rollouts.logprobs)
        value = float(np.mean(rewards)) if finite else float("nan")
        return GateValue(value, value, rewards)

    def _completions(self, rollouts: Rollouts) -> list[Any]:
        """Completions as TRL decodes them: texts without special tokens, or messages where the prompt is a chat."""
        texts = self.tokenizer.batch_decode(rollouts.completions, skip_special_tokens=True)
        parses = any(getattr(self.tokenizer, name, None) for name in ("response_template", "response_schema"))

        def message(row: int) -> Any:
            if not parses:
                return {"role": "assistant", "content": texts[row]}
            from trl.chat_template_utils import parse_response  # tells reasoning and calls of tools from the answer

            return parse_response(self.tokenizer, rollouts.completions[row], prefix=self.tokens[row])

        return [[message(row)] if _is_chat(prompt) else texts[row] for row, prompt in enumerate(self.prompts)]


class ReverseKLGate(_SampledGate):
    """The exact KL(student || teacher) of sampled completions, per token: what distillation minimizes."""

    metric = "reverse_kl"

    def __init__(
        self,
        prompts: Sequence[Prompt],
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        **settings: Any,
    ) -> None:
        super().__init__(prompts, tokenizer, **settings)
        self.teacher = teacher

    def __call__(self, model: PreTrainedModel, step: int, coefficient: float) -> GateValue:
        rollouts = self._sample(model, step, coefficient)
        _, pad_id = special_ids(self.tokenizer)
        teacher: Any = self.teacher
        teacher.to(model.device)
        per_token = measure_reverse_kl(
            inside(model),
            teacher,
            rollouts,
            pad_id=pad_id,
            batch_size=self.batch_size,
            temperature=self.sampling.temperature or 1.0,  # of the policy that was sampled from
        )
        per_item = [float(row.sum(dtype=np.float64)) for row in per_token]
        value = float(np.array(per_item).sum() / rollouts.completion_tokens)
        return GateValue(value, -value, per_item)


def inside(model: Any) -> PreTrainedModel:
    """The transformers model in a PEFT model, with the adapters in its layers; any other model as it is.

    Raises UserError for prompt tuning, whose virtual tokens are outside.
    """
    if not hasattr(model, "get_base_model"):
        plain: PreTrainedModel = model
        return plain
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise UserError("the gate knows no prompt tuning. Train LoRA adapters, or give a gate of your own.")
    plain = model.get_base_model()
    return plain


def name_of(judge: Judge) -> str:
    """The name of a function, or of an object's class."""
    return str(getattr(judge, "__name__", type(judge).__name__))


@dataclass
class ModelGate:
    """Asks about the model in training, at a step, on every rank, and goes by what is said on the first."""

    ask: Judge
    model: PreTrainedModel
    step: int

    def judge(self, coefficient: float) -> GateValue:
        started, training = time.perf_counter(), self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng():  # a gate that samples leaves the training's random numbers alone
                found = self.ask(self.model, self.step, coefficient)
        finally:
            self.model.train(training)
        box = [checked_value(found, name_of(self.ask))]
        if ranks() > 1:
            dist.broadcast_object_list(box, src=0)
        return replace(box[0], cost=[cost_row("gate", self.step, time.perf_counter() - started)])


def checked_value(found: Any, name: str) -> GateValue:
    """What the gate `name` returned: a GateValue, or a number of which more is better.

    NaN and infinity stay as they are. Raises UserError if it is neither.
    """
    value = found if isinstance(found, GateValue) else GateValue(found, found)
    try:
        items = [number(item, f"item {row} of its value") for row, item in enumerate(value.per_item)]
        return GateValue(number(value.value, "its value"), number(value.score, "its value"), items)
    except NumberError as error:
        raise UserError(f"the gate `{name}` returned no number: {error}. It has to return one.") from None


def _is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _encoded(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> list[int]:
    if isinstance(prompt, str):
        return list(tokenizer(prompt)["input_ids"])
    if _is_chat(prompt):
        messages: Any = prompt
        text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids: Any = prompt
    return list(ids)
