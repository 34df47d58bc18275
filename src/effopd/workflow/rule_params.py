"""What the commands of a plan's jobs are told: what decides their results, their inputs, and how they start.

The `params` of a rule are functions. Snakemake tracks what those return that take the wildcards alone, and reruns a
job when it has changed; it does not track those that ask for `input`, `output`, `threads` or `resources`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from effopd.workflow.launch import command as launch_command
from effopd.workflow.rule_inputs import RuleInputs

Ranks = Callable[[Any], int]


class RuleParams:
    """The params of a plan's jobs."""

    def __init__(self, inputs: RuleInputs) -> None:
        self.inputs, self.plan = inputs, inputs.plan

    def spec(self, stage: str) -> Callable[[Any], str]:
        """The canonical JSON of all that decides the stage's result."""

        def params(wildcards: Any) -> str:
            return self.plan.spec(stage, **dict(wildcards.items()))

        return params

    def untracked_spec(self, stage: str) -> Callable[[Any, int], str]:
        """The same where a change reruns nothing."""

        def params(wildcards: Any, threads: int) -> str:
            return self.plan.spec(stage, **dict(wildcards.items()))

        return params

    def evaluation_spec(self, split: str = "test") -> Callable[[Any], str]:
        """The spec of an evaluation of a model, or of a point of a run or prediction, by the job's wildcards."""

        def params(wildcards: Any) -> str:
            task = getattr(wildcards, "task", None)
            if hasattr(wildcards, "model"):
                return self.plan.evaluate_model_spec(task=task)
            return self.plan.evaluate_run_spec(self.inputs.run_of(wildcards), split=split, task=task)

        return params

    def ranks_of_model(self, wildcards: Any) -> int:
        """The processes of a model's training job."""
        return int(self.plan.config["models"][wildcards.model]["num_processes"])

    def ranks_of_run(self, wildcards: Any) -> int:
        """The processes of a run's training jobs."""
        return int(self.plan.runs[wildcards.run]["training"]["num_processes"])

    def launch(self, ranks: Ranks | None = None) -> Callable[[Any, int, Any], str]:
        """What starts a command's processes, one or its ranks, with the job's resources.

        Raises UserError if the resources do not fit each other.
        """

        def params(wildcards: Any, threads: int, resources: Any) -> str:
            on_cpu = self.plan.config["runtime"]["device"] == "cpu"
            return launch_command(
                ranks(wildcards) if ranks else 1,
                gpus=0 if on_cpu else resources.get("gpu", 0),
                nodes=resources.get("nodes", 1),
                mpi=resources.get("mpi"),
                cpus=resources.get("cpus_per_task", threads),
            )

        return params


def named_inputs(wildcards: Any, input: Any) -> str:
    """The job's named inputs as options of its command: `--anchor-decision path`, once for each of several paths."""
    return " ".join(
        f"--{name.replace('_', '-')} {path}"
        for name, paths in input.items()
        for path in ([paths] if isinstance(paths, str) else paths)
    )


def only_output(wildcards: Any, output: Any) -> str:
    """Where the command writes: the first of the job's outputs, beside which the others lie."""
    return str(output[0])


def folder_of_outputs(wildcards: Any, output: Any) -> str:
    """Where the command writes: the folder of the job's outputs."""
    return str(Path(output[0]).parent)


def quoted(files: Callable[[Any], list[str]]) -> Callable[[Any, Any], str]:
    """Files of a job, which may have any name, as arguments of its command."""

    def params(wildcards: Any, input: Any) -> str:
        return shlex.join(files(wildcards))

    return params
