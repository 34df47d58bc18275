"""Gates for EffOPDCallback: accuracy by a reward function, and the exact reverse KL to a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.engines.base import Sampling, longest_context
from effopd.engines.transformers_engine import TransformersEngine
from effopd.extrapolation.gate import GateValue, gate_rows, gate_seeds
from effopd.models import special_ids
from effopd.rollouts import Rollouts
from effopd.runtime.errors import UserError
from effopd.scoring import measure_reverse_kl

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]  # text, token ids, or chat messages


class _SampledGate:
    """Samples completions of a fixed choice of prompts from the weights that it is to judge.

    `examples` of the prompts are drawn once, by `seed` (as the workflow draws them from the split `source`), each
    answered `samples` times. `paired`: all candidates of a trigger meet the same random numbers, which takes most of
    the noise out of their comparison. Raises UserError where there are too few prompts.
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
            model, self.tokenizer, batch_size=self.batch_size, context=context, dtype="float32"
        )
        seeds = gate_seeds(self.seed, step, coefficient, len(self.rows), self.paired)
        return engine.generate(self.tokens, seeds, self.sampling)


class AccuracyGate(_SampledGate):
    """The mean reward of sampled completions (the paper's gate).

    `reward` is called as TRL calls a reward function, `reward(prompts=..., completions=..., **columns)`, and returns a
    number a completion; `columns` are columns of the data set as long as `prompts` (reference answers, say).
    """

    metric = "accuracy"

    def __init__(
        self,
        prompts: Sequence[Prompt],
        reward: Any,
        tokenizer: PreTrainedTokenizerFast,
        *,
        columns: Mapping[str, Sequence[Any]] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(prompts, tokenizer, **settings)
        self.reward = reward
        self.columns = {name: [column[row] for row in self.rows] for name, column in (columns or {}).items()}

    def __call__(self, model: PreTrainedModel, step: int, coefficient: float) -> GateValue:
        rollouts = self._sample(model, step, coefficient)
        texts = self.tokenizer.batch_decode(
            [c[:-1] if done else c for c, done in zip(rollouts.completions, rollouts.finished, strict=True)]
        )
        completions = [
            [{"role": "assistant", "content": text}] if _is_chat(prompt) else text
            for prompt, text in zip(self.prompts, texts, strict=True)
        ]
        rewards = [float(r) for r in self.reward(prompts=self.prompts, completions=completions, **self.columns)]
        finite = all(np.isfinite(row).all() for row in rollouts.logprobs)
        value = float(np.mean(rewards)) if finite else float("nan")
        return GateValue(value, value, rewards)


class ReverseKLGate(_SampledGate):
    """The exact KL(student || teacher) of sampled completions, per token: what distillation minimises."""

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
            model,
            teacher,
            rollouts,
            pad_id=pad_id,
            batch_size=self.batch_size,
            temperature=self.sampling.temperature or 1.0,  # of the policy that was sampled from
        )
        per_item = [float(row.sum(dtype=np.float64)) for row in per_token]
        value = float(np.array(per_item).sum() / rollouts.completion_tokens)
        return GateValue(value, -value, per_item)


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
