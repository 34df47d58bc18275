"""Keeping a few completions of an evaluation: those of the same problems, whatever is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from transformers import PreTrainedTokenizerFast

from effopd.common.randomness import seed_of
from effopd.data.prompts import Prompts
from effopd.data.rollouts import Rollouts
from effopd.data.verification import completion_texts
from effopd.engines.base import RolloutEngine
from effopd.evaluation.sample_files import Sample
from effopd.specs.engines import Sampling


def chosen_positions(seed: int, rows: Sequence[int], count: int) -> list[int]:
    """Where the chosen ones stand among `rows`, those of a split's problems that a model is asked; ascending.

    Every row draws its own number, so a problem that is too long for one model changes no other model's choice of the
    rest. All if there are no more than `count`.
    """
    drawn = sorted(range(len(rows)), key=lambda position: seed_of(seed, "kept sample", rows[position]))
    return sorted(drawn[:count])


class RememberingEngine(RolloutEngine):
    """An engine that remembers the rollouts of some seeds.

    A wrapper, since what else measures a model, such as a gate during training, has no use for texts.
    """

    def __init__(self, engine: RolloutEngine, seeds: Sequence[int]) -> None:
        self._engine, self._seeds = engine, seeds
        self._found: dict[int, Rollouts] = {}

    @property
    def remembered(self) -> Rollouts:
        """The rollouts, in the order of the seeds."""
        return Rollouts.concatenate([self._found[seed] for seed in self._seeds])

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Rollouts:
        rollouts = self._engine.generate(prompts, seeds, sampling)
        places = {seed: row for row, seed in enumerate(seeds)}
        self._found |= {seed: rollouts.select([places[seed]]) for seed in self._seeds if seed in places}
        return rollouts

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._engine.load_weights(weights)

    def sync_weights(self) -> None:
        self._engine.sync_weights()

    def close(self) -> None:
        self._engine.close()


def samples_of(
    tokenizer: PreTrainedTokenizerFast, asked: Prompts, rows: Sequence[int], rollouts: Rollouts, items: pd.DataFrame
) -> list[Sample]:
    """The samples of N problems: as asked, their rows in the split, the rollouts and their outcomes, a row each."""
    prompts = tokenizer.batch_decode([asked.tokens[position] for position in range(len(asked))])
    texts = completion_texts(tokenizer, rollouts)
    outcomes = items[["reward", "reason", "tokens", "finished"]].to_dict("records")
    return [
        Sample(
            row=row,
            problem=problem.text,
            answer=problem.answer,
            prompt=prompt,
            completion=text,
            reward=float(outcome["reward"]),
            reason=str(outcome["reason"]),
            tokens=int(outcome["tokens"]),
            finished=bool(outcome["finished"]),
        )
        for row, problem, prompt, text, outcome in zip(rows, asked.problems, prompts, texts, outcomes, strict=True)
    ]
