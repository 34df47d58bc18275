"""What a step trains on: prompts, their groups of rollouts, and the verifier's rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedTokenizerFast

from effopd.common.errors import ConfigError
from effopd.common.randomness import epoch_order, generator, seed_of
from effopd.data.prompts import Prompts
from effopd.data.rollouts import Rollouts
from effopd.data.verification import verify_rollouts
from effopd.engines.base import RolloutEngine
from effopd.reinforcement.losses import informative_groups
from effopd.specs.engines import Sampling
from effopd.specs.models import RLSettings
from effopd.tasks.base import Task
from effopd.training.trainer import Trainer


@dataclass
class Groups:
    """G groups: the rollouts of one prompt after the other, `size` each."""

    positions: list[int]  # G, of the prompts in the step's order
    rollouts: Rollouts  # N = G * size
    rewards: torch.Tensor  # float32 [N], the verifier's

    @property
    def size(self) -> int:
        return len(self.rollouts) // max(1, len(self.positions))

    def take(self, positions: Sequence[int]) -> Groups:
        """The groups of some prompts, in their order."""
        where = {position: number for number, position in enumerate(self.positions)}
        rows = [where[position] * self.size + sample for position in positions for sample in range(self.size)]
        return Groups(list(positions), self.rollouts.select(rows), self.rewards[rows])

    @staticmethod
    def concatenate(parts: Sequence[Groups]) -> Groups:
        return Groups(
            [position for part in parts for position in part.positions],
            Rollouts.concatenate([part.rollouts for part in parts]),
            torch.cat([part.rewards for part in parts]),
        )


@dataclass
class Source:
    """Asks an engine for groups, and the task's verifier for their rewards."""

    settings: RLSettings
    prompts: Prompts
    task: Task
    tokenizer: PreTrainedTokenizerFast
    engine: RolloutEngine

    def groups(self, step: int, positions: Sequence[int]) -> Groups:
        """The groups of the prompts at some positions of a step (from 1), as the engine's weights answer them.

        A step has room for `max_draws` draws in the seed's shuffled epochs; what it leaves is passed over, so that no
        step depends on how much others drew.
        """
        seed, size = self.settings.seed, self.settings.samples_per_prompt
        room = self.settings.prompts_per_step * (self.settings.max_draws or 1)
        order = epoch_order(seed, "reinforcement order", len(self.prompts), (step - 1) * room, max(positions) + 1)
        asked = self.prompts.select([order[position] for position in positions for _ in range(size)])
        seeds = [
            seed_of(seed, "reinforcement rollout", step, position, sample)
            for position in positions
            for sample in range(size)
        ]
        sampling = Sampling(self.settings.temperature, self.settings.max_new_tokens)
        rollouts = self.engine.generate(asked.tokens, seeds, sampling)
        rewards = verify_rollouts(self.task, self.tokenizer, asked.problems, rollouts)["reward"]
        return Groups(list(positions), rollouts, torch.tensor(rewards))


class Validation:
    """Problems of the validation split, and the accuracy of a source's engine on them: one answer each.

    Every evaluation meets the same problems with the same random numbers.
    """

    def __init__(self, source: Source, prompts: Prompts, problems: int) -> None:
        """Draw `problems` of the split. Raises ConfigError if it holds fewer."""
        if problems > len(prompts):
            raise ConfigError(
                f"config: `early_stopping.problems` of a model is {problems}, and the validation split holds "
                f"{len(prompts)}. Lower it or enlarge the split."
            )
        self.source, seed = source, source.settings.seed
        rows = sorted(generator(seed, "early stopping").choice(len(prompts), problems, replace=False).tolist())
        self.asked, self.seeds = prompts.select(rows), [seed_of(seed, "early stopping", row) for row in rows]

    def accuracy(self, trainer: Trainer) -> float:
        """Mean reward over all ranks, each of which answers its shard."""
        shard = trainer.shard_of(range(len(self.seeds)))
        asked, source = self.asked.select(shard), self.source
        seeds = [self.seeds[position] for position in shard]
        sampling = Sampling(source.settings.temperature, source.settings.max_new_tokens)
        rollouts = source.engine.generate(asked.tokens, seeds, sampling)
        rewards = verify_rollouts(source.task, source.tokenizer, asked.problems, rollouts)["reward"]
        return trainer.sum_over_ranks(float(sum(rewards))) / len(self.seeds)


def draw_minibatches(trainer: Trainer, source: Source, step: int) -> tuple[list[Groups], dict[str, float]]:
    """This rank's groups of each minibatch of a step, and what drawing them came to, all ranks together.

    The minibatches and their order do not depend on the number of ranks. `reward` and `completion_length` are means
    over all that was generated.
    """
    settings = source.settings
    count = settings.prompts_per_step
    if settings.max_draws:
        minibatches, generated, facts = _draw_dynamically(trainer, source, step)
    else:
        shards = [trainer.shard_of(part) for part in _parts(range(count), settings.minibatches)]
        drawn = source.groups(step, list(chain.from_iterable(shards)))
        minibatches, generated, facts = [drawn.take(shard) for shard in shards], [drawn], {}
    rollouts = trainer.sum_over_ranks(sum(len(groups.rollouts) for groups in generated))
    tokens = trainer.sum_over_ranks(sum(groups.rollouts.completion_tokens for groups in generated))
    reward = trainer.sum_over_ranks(sum(groups.rewards.sum().item() for groups in generated))
    return minibatches, {
        "reward": reward / rollouts,
        "completion_length": tokens / rollouts,
        "generated_tokens": int(tokens),
        **facts,
    }


def _draw_dynamically(
    trainer: Trainer, source: Source, step: int
) -> tuple[list[Groups], list[Groups], dict[str, float]]:
    """DAPO's dynamic sampling (section 3.2): draw until enough groups are informative, at most `max_draws` times.

    Returns this rank's minibatches, all that it generated, and facts. What is drawn beyond the last group that is
    needed is left out, too. Where no group is informative, the last draw is trained on, as GRPO would.
    """
    settings = source.settings
    count, size = settings.prompts_per_step, settings.samples_per_prompt
    generated: list[Groups] = []
    drawn: list[Groups] = []  # of all ranks
    kept: list[int] = []
    alike = 0
    while len(kept) < count and len(generated) < settings.max_draws:
        positions = range(len(generated) * count, (len(generated) + 1) * count)
        generated.append(source.groups(step, trainer.shard_of(positions)))
        drawn.append(Groups.concatenate(trainer.gather(generated[-1])).take(positions))
        differ = informative_groups(drawn[-1].rewards, size).tolist()
        alike += differ.count(False)
        kept += [position for position, informative in zip(positions, differ, strict=True) if informative]
    trained = kept[:count] or list(positions)
    parts = [part for part in _parts(trained, settings.minibatches) if part]
    everything = Groups.concatenate(drawn)
    facts: dict[str, float] = {"draws": len(generated), "dropped_groups": alike, "trained_groups": len(trained)}
    return [everything.take(trainer.shard_of(part)) for part in parts], generated, facts


def _parts(positions: Sequence[int], count: int) -> list[Sequence[int]]:
    """`count` nearly equal parts, in order."""
    total = len(positions)
    return [positions[number * total // count : (number + 1) * total // count] for number in range(count)]
