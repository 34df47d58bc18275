"""What an experiment takes, estimated before it is begun: GPU hours, disk and memory.

An analytic model, right to a factor of two or so: arithmetic at a share of the GPU's peak, decoding bound by what it
reads. What it assumes is in the section `estimate` of the configuration. Light to import (no torch).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effopd.architecture import Architecture, architecture_of
from effopd.flops import UPDATE_PASSES
from effopd.plan import Plan
from effopd.runtime.text import aligned, size_text
from effopd.sizes import BFLOAT16, FLOAT32, activation_bytes, lora_update_bytes, optimizer_bytes, update_bytes

BYTES_A_TOKEN = 12  # of rollouts and scores on disk: a token id and two log-probs
SMALLEST = 1e8  # parameters below which starting jobs takes longer than arithmetic, and no time is given
ARITHMETIC_VOCABULARY = 16


@dataclass(frozen=True)
class Hardware:
    """GPUs that work together, and how much of their peak the work reaches."""

    count: int
    tflops: float  # dense bfloat16, each
    bandwidth_gb: float  # GB/s of its memory, each
    memory_gb: float  # each
    utilisation: float  # share of peak arithmetic in updates and scores
    bandwidth_share: float  # share of peak bandwidth in decoding

    def compute(self, flops: float) -> float:
        """Seconds of arithmetic."""
        return flops / (self.count * self.tflops * 1e12 * self.utilisation)

    def decode(self, model: Architecture, sequences: float, prompt: float, mean: float, longest: float) -> float:
        """Seconds to generate completions of `mean` tokens, the longest of `longest`, in bfloat16.

        A step reads the weights once and every sequence's cache; as many sequences go together as there is memory for.
        """
        weights = BFLOAT16 * model.parameters
        shards = max(1, math.ceil(weights / (0.6e9 * self.memory_gb)))  # GPUs that share one copy of the weights
        replicas = max(1, self.count // shards)
        own = sequences / replicas
        cache = model.cache_bytes * (prompt + mean / 2)
        room = max(1.0, (0.8e9 * self.memory_gb * shards - weights) / cache)
        together = min(own, room)
        steps = max(longest, mean * own / together)
        read = (weights + together * cache) / (shards * self.bandwidth_gb * 1e9 * self.bandwidth_share)
        arithmetic = (
            together * model.forward_flops(prompt + mean / 2) / (shards * self.tflops * 1e12 * self.utilisation)
        )
        return steps * max(read, arithmetic)


@dataclass(frozen=True)
class RunEstimate:
    """One run with one seed: seconds by stage on its GPUs, and bytes on disk and in memory."""

    run: str
    gpus: int
    seconds: dict[str, float]  # rollouts, scores, updates, gates, evaluation
    disk: float
    memory: float  # of each GPU, at an update

    @property
    def gpu_hours(self) -> float:
        return self.gpus * sum(self.seconds.values()) / 3600


def estimate_run(plan: Plan, run: str, student: Architecture, teacher: Architecture) -> RunEstimate:
    """The estimate of a run and one of its seeds."""
    settings, assumed = plan.runs[run], plan.config["estimate"]
    training, gate = settings["training"], settings["extrapolation"]["gate"]
    hardware = _hardware(assumed, training["ranks"])
    prompt, longest = assumed["prompt_tokens"], training["max_new_tokens"]
    horizon = training["horizon"].get("tokens", longest)  # of rollouts to train on
    share = assumed["completion_share"]

    def generate(sequences: float, limit: float = longest) -> float:
        return hardware.decode(student, sequences, prompt, share * limit, limit)

    def score(model: Architecture, sequences: float, limit: float = longest) -> float:
        length = prompt + share * limit
        return hardware.compute(sequences * length * model.forward_flops(length))

    rollouts = training["prompts_per_step"] * training["samples_per_prompt"]
    steps, states, triggers = training["steps"], len(plan.boundaries(run)), len(plan.triggers(run))
    evaluated = _test_problems(plan) * plan.config["evaluation"]["samples"]

    def both(sequences: float) -> float:
        return score(student, sequences) + score(teacher, sequences)

    trials = 1 + len(settings["extrapolation"]["coefficients"])  # about as many as a line search takes
    if gate["source"] == "rollouts":  # the teacher is asked once
        gated = min(gate["examples"], rollouts)
        judging = trials * score(student, gated, horizon) + score(teacher, gated, horizon)
        search = {"reverse_kl": judging}.get(gate["metric"], 0.0)
    else:
        gated = gate["examples"] * gate["samples"]
        judged = {"accuracy": generate(gated), "reverse_kl": generate(gated) + both(gated)}.get(gate["metric"], 0.0)
        search = trials * judged
    seconds = {
        "rollouts": steps * generate(rollouts, horizon),
        "scores": steps * score(teacher, rollouts, horizon),
        "updates": steps * UPDATE_PASSES * score(student, rollouts, horizon),
        "gates": (steps if plan.every_step(run) else triggers) * search,
        "evaluation": states * (generate(evaluated) + both(evaluated)),
    }
    parameters = student.parameters
    disk = (
        states * (FLOAT32 * parameters + optimizer_bytes(parameters, _factors(training, student)))
        + triggers * FLOAT32 * parameters
        + steps * rollouts * share * horizon * BYTES_A_TOKEN
    )
    memory = _memory(plan, run, student, teacher)
    return RunEstimate(run, training["ranks"], seconds, disk, memory)


def _memory(plan: Plan, run: str, student: Architecture, teacher: Architecture) -> float:
    """Bytes on each GPU at an update of the longest sequences; logits, a chunk at a time, are left out.

    Where every step is extrapolated, a second student tries candidates, and the teacher is there in any case.
    """
    training = plan.runs[run]["training"]
    prompt = plan.config["task"].get("prompt", {}).get("max_tokens", plan.config["estimate"]["prompt_tokens"])
    positions = training.get("micro_batch", training["batch_size"]) * (prompt + training["max_new_tokens"])
    precision, checkpointing = training["precision"], training["gradient_checkpointing"]
    if (factors := _factors(training, student)) is not None:
        held = lora_update_bytes(student.parameters, factors)
    else:
        held = update_bytes(
            student.parameters, training["ranks"], training["zero_stage"], precision, training["offload_optimizer"]
        )
    activations = activation_bytes(positions, student.hidden_size, student.layers, precision, checkpointing)
    low = plan.config["models"][training["teacher"]].get("dtype") == "bfloat16"
    every_step = plan.every_step(run)
    judging = (BFLOAT16 if precision == "bfloat16" else FLOAT32) * student.parameters if every_step else 0
    beside = 0 if plan.staged and not every_step else (BFLOAT16 if low else FLOAT32) * teacher.parameters
    return held + activations + judging + beside


def _factors(training: Mapping[str, Any], student: Architecture) -> float | None:
    """Numbers in the factors of a run with LoRA, at most (`lora.parameters` may leave layers out)."""
    return student.lora_factors(training["lora"]["rank"]) if "lora" in training else None


def _hardware(assumed: Mapping[str, Any], count: int) -> Hardware:
    gpu = assumed["gpu"]
    return Hardware(
        count, gpu["tflops"], gpu["bandwidth_gb"], gpu["memory_gb"], assumed["utilisation"], assumed["bandwidth_share"]
    )


def _test_problems(plan: Plan) -> int:
    """The problems that states are evaluated on, as far as the configuration knows."""
    split = plan.config["task"]["splits"]["test"]
    rows = split if isinstance(split, int) else split.get("rows")
    return int(rows or plan.config["estimate"]["test_problems"])


@dataclass(frozen=True)
class Estimate:
    """The runs that could be estimated, once for each seed, and why others could not."""

    runs: list[RunEstimate]
    seeds: int
    timed: bool  # whether the models are large enough for the times to mean something
    notes: list[str]

    @property
    def gpu_hours(self) -> float:
        return self.seeds * sum(run.gpu_hours for run in self.runs)

    @property
    def disk(self) -> float:
        return self.seeds * sum(run.disk for run in self.runs)

    def line(self) -> str:
        """The estimate in one line."""
        parts = [f"{self.gpu_hours:,.0f} GPU hours"] if self.timed and self.runs else []
        parts += [f"{size_text(self.disk)} of disk"] if self.runs else []
        return ", ".join(parts) or "nothing can be said before the models are there"

    def table(self) -> list[str]:
        """A line a run: hours of its GPUs by stage, GPU hours and disk, all seeds together; memory at an update."""
        stages = ("rollouts", "scores", "updates", "gates", "evaluation")
        rows: list[list[str]] = [
            ["run", "GPUs", *(f"{stage}, h" for stage in stages), "GPU hours", "disk", "of each GPU"]
        ]
        for run in self.runs:
            hours = [f"{self.seeds * run.seconds[stage] / 3600:.1f}" if self.timed else "" for stage in stages]
            total = f"{self.seeds * run.gpu_hours:,.0f}" if self.timed else ""
            rows.append(
                [run.run, str(run.gpus), *hours, total, size_text(self.seeds * run.disk), size_text(run.memory)]
            )
        return aligned(rows)

    def assumptions(self, plan: Plan) -> list[str]:
        """What the times rest on, in words; nothing where none are given."""
        assumed, gpu = plan.config["estimate"], plan.config["estimate"]["gpu"]
        if not self.timed:
            return []
        return [
            f"assumed: {gpu['name']}, {gpu['tflops']:g} TFLOP/s at {assumed['utilisation']:.0%}, "
            f"{gpu['bandwidth_gb']:g} GB/s at {assumed['bandwidth_share']:.0%}, {gpu['memory_gb']:g} GB; completions "
            f"of {assumed['completion_share']:.0%} of `max_new_tokens`; every candidate of a trigger tried"
        ]


def estimate(plan: Plan) -> Estimate:
    """What a plan takes, with all its seeds."""
    runs: list[RunEstimate] = []
    notes: list[str] = []
    sizes = []
    for run, settings in plan.runs.items():
        names = [settings["training"][role] for role in ("student", "teacher")]
        student, teacher = (_architecture(plan, name) for name in names)
        if student is None or teacher is None:
            unknown = " and ".join(name for name in names if _architecture(plan, name) is None)
            notes.append(f"{run}: the size of {unknown} is not known yet. Add it to `estimate.architectures`.")
            continue
        runs.append(estimate_run(plan, run, student, teacher))
        memory, there = runs[-1].memory, plan.config["estimate"]["gpu"]["memory_gb"] * 1e9
        if memory > there:
            notes.append(
                f"{run}: an update takes {size_text(memory)} of each GPU, which has {size_text(there)}. Use "
                "`gradient_checkpointing`, a smaller `micro_batch`, a higher `zero_stage`, more `ranks` or "
                "`execution.mode: staged`."
            )
        sizes.append(student.parameters)
    return Estimate(runs, len(plan.seeds), max(sizes, default=0) >= SMALLEST, notes)


def _architecture(plan: Plan, model: str) -> Architecture | None:
    found: Architecture | None = architecture_of(
        plan.config["models"], model, ARITHMETIC_VOCABULARY, plan.config["estimate"]["architectures"]
    )
    return found


def dry_run_estimate(plan: Plan) -> list[str]:
    """What a dry run says: the whole experiment's estimate, whatever of it is done, and what has to be known."""
    found = estimate(plan)
    return [f"{found.line()} for the whole experiment (see `effopd estimate`)", *found.notes]
