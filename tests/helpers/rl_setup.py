"""A task and a trainer for reinforcement learning."""

from __future__ import annotations

import torch

from effopd.data.prompts import Prompts
from effopd.engines.transformers_engine import TransformersEngine
from effopd.models.models import special_ids
from effopd.reinforcement.draws import Source, Validation, draw_minibatches
from effopd.reinforcement.updates import Updates
from effopd.reinforcement.value_head import attach_value_head
from effopd.tasks.arithmetic import ArithmeticTask
from effopd.tasks.base import Problem, Verdict
from effopd.training.trainer import Trainer, TrainerSettings
from tiny_models import make_model
from typed_settings import rl_settings

CPU = torch.device("cpu")

SMALL = {"init": "base", "prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 8, "lr": 3e-3}

WAYS = {  # of training: each part of each algorithm acts in one of them
    "grpo": {"kind": "grpo"},
    "grpo_clipped": {"kind": "grpo", "epochs": 2, "minibatches": 2, "clip_low": 0.02, "clip_high": 0.02, "kl_coefficient": 0.1},
    "dapo": {"kind": "dapo", "epochs": 2, "overlong_buffer": 4},
    "ppo": {"kind": "ppo", "epochs": 2, "kl_coefficient": 0.1},
}  # fmt: skip

# Which of them two ranks go, under which ZeRO stage (test_two_ranks.py).
PARTED = [("grpo", 0), ("grpo_clipped", 3), ("dapo", 0), ("dapo", 2), ("ppo", 0), ("ppo", 2), ("ppo", 3)]


def settings_of(way, **changes):
    """Of a small model that is trained in one of WAYS."""
    return rl_settings(**{**SMALL, **WAYS[way], **changes})


class FirstTokenTask(ArithmeticTask):
    """Rewards completions by how they begin, which random models can be right about."""

    def __init__(self, right="01234"):
        self.right = tuple(right)

    def verify(self, problem, completion):
        return Verdict(float(completion.startswith(self.right)) if self.right else 0.0, "first token")


class Setup:
    """A model with what trains it."""

    def __init__(self, way, tokenizer, task=None, **changes):
        self.settings = settings_of(way, **changes)
        self.model, policy_model = (make_model(0, vocabulary=len(tokenizer)) for _ in range(2))
        self.reference = make_model(5, vocabulary=len(tokenizer))
        if self.settings.kind == "ppo":
            for model in (self.model, policy_model):
                attach_value_head(model, self.settings.value_scale)
        self.policy_model = policy_model if self.settings.zero_stage == 3 else self.model
        problems = [Problem(f"{a}+{b}=", "") for a in range(1, 8) for b in range(1, 8)]
        prompts = Prompts([tokenizer(problem.text)["input_ids"] for problem in problems], problems)
        engine = TransformersEngine.of(self.policy_model, tokenizer, batch_size=16, context=32, dtype="float32")
        self.source = Source(self.settings, prompts, task or FirstTokenTask(), tokenizer, engine)
        self.updates = Updates(self.settings, self.policy_model, self.reference, special_ids(tokenizer)[1], CPU)
        self.trainer = Trainer(self.model, TrainerSettings.of(self.settings))

    def step(self, number, minibatches=None):
        drawn = {}
        if self.policy_model is not self.model:
            self.trainer.copy_weights_into(self.policy_model)
        if minibatches is None:
            minibatches, drawn = draw_minibatches(self.trainer, self.source, number)
        return {**drawn, **self.updates(self.trainer, minibatches, self.settings.lr)}

    def accuracy(self, problems=7):
        """Of the policy as it is, on prompts that stand for the validation split's; on all ranks together."""
        if self.policy_model is not self.model:
            self.trainer.copy_weights_into(self.policy_model)
        self.source.engine.sync_weights()
        return Validation(self.source, self.source.prompts, problems).accuracy(self.trainer)
