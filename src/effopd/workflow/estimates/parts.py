"""What each part of an experiment takes: its runs, models, predictions, and what is done with their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from effopd.dynamics.variants import variants
from effopd.extrapolation.schedule import powers_of_two
from effopd.models.frozen import frozen_dtype
from effopd.models.pretrained import is_dequantized
from effopd.specs.dynamics import InterventionSettings
from effopd.specs.read import read_section
from effopd.specs.updates import HoldingSettings
from effopd.workflow.estimates.architecture import Architecture
from effopd.workflow.estimates.memory import (
    FLOAT32,
    activation_bytes,
    beside_bytes,
    optimizer_bytes,
    trained_bytes,
    width_of,
)
from effopd.workflow.estimates.work import DERIVATIVE_PASSES, Work
from effopd.workflow.job_specs import Plan

BYTES_A_TOKEN = 12  # of rollouts and scores on disk: a token id and two log-probs
LOCAL_THEORY, MODEL, SAMPLES = "local theory", "model ", "samples "  # what their parts' names begin with
STAGES = ("rollouts", "scores", "updates", "gates", "evaluation")


@dataclass(frozen=True)
class Part:
    """What a part takes, all seeds together."""

    name: str
    gpu_seconds: dict[str, float]  # by stage, those that it has
    disk: float = 0  # bytes that it leaves
    gpus: int | None = None  # that train it together
    memory: float | None = None  # bytes of each of these, at an update
    judging: float | None = None  # bytes of the one GPU on which student and teacher are measured

    @property
    def gpu_hours(self) -> float:
        return sum(self.gpu_seconds.values()) / 3600


def of_run(plan: Plan, run: str, student: Architecture, teacher: Architecture) -> Part:
    """A run with all its seeds."""
    settings, seeds = plan.runs[run], len(plan.seeds)
    training = settings["training"]
    work, longest = Work.of(plan, training["num_processes"]), training["max_new_tokens"]
    rollouts, horizon = _rollouts(training)
    steps, states, triggers = training["steps"], len(plan.boundaries(run)), len(plan.triggers(run))
    alone = work.alone(student)
    search = alone.gate(settings["extrapolation"], student, teacher, rollouts=rollouts, horizon=horizon, limit=longest)
    passes = 1 if training["objective"]["reward_scale"] == 1 else 2  # of the teacher; of the untrained student too
    seconds = {
        "rollouts": steps * work.generate(student, rollouts, horizon),
        "scores": steps * passes * work.forward(teacher, rollouts, horizon),
        "updates": steps * work.update(student, rollouts, horizon),
        "gates": (steps if plan.every_step(run) else triggers) * search,
        "evaluation": states * alone.measure(student, teacher, evaluated(plan), longest)
        + _on_other_tasks(plan, alone, student, longest),
    }
    parameters = student.parameters
    factors = student.lora_factors(training["lora"]["rank"]) if "lora" in training else None
    disk = (
        states * (FLOAT32 * parameters + optimizer_bytes(parameters, factors))
        + triggers * FLOAT32 * parameters
        + steps * rollouts * work.share * horizon * BYTES_A_TOKEN
    )
    frozen = frozen_bytes(plan, training["teacher"], teacher)
    memory = trained_bytes(
        HoldingSettings.of(training),
        parameters=parameters,
        hidden_size=student.hidden_size,
        layers=student.layers,
        positions=training.get("micro_batch", training["batch_size"]) * (longest_prompt(plan) + longest),
        factors=factors,
    )
    students, asked = plan.beside_update(run)
    memory += beside_bytes(training["precision"], parameters, students, asked * frozen)
    judging = width_of(training["precision"]) * parameters + frozen
    gpu_seconds = {stage: seeds * value for stage, value in seconds.items()}
    return Part(run, gpu_seconds, seeds * disk, training["num_processes"], memory, judging)


def of_model(plan: Plan, name: str, model: Architecture, reference: Architecture) -> Part:
    """A model, trained or not, and its evaluation against the teacher of the baseline."""
    settings = plan.config["models"][name]
    work = Work.of(plan, settings.get("num_processes", 1))
    limit = max(run["training"]["max_new_tokens"] for run in plan.runs.values())
    alone = work.alone(model)
    evaluation = alone.measure(model, reference, evaluated(plan), limit) + _on_other_tasks(plan, alone, model, limit)
    judging = frozen_bytes(plan, name, model) + frozen_bytes(plan, plan.reference_teacher(), reference)
    if settings["kind"] == "pretrained":  # linked, and in the hub's cache, unless it is dequantized
        disk = FLOAT32 * model.parameters if is_dequantized(plan.pretrained(name)) else 0
        return Part(f"{MODEL}{name}", {"evaluation": evaluation}, disk, judging=judging)
    trained, sequences, completion, kept = _training(plan, settings, work, model, limit)
    longest = min(longest_prompt(plan) + completion, settings.get("max_tokens", math.inf))
    memory = trained_bytes(
        HoldingSettings.of(settings),
        parameters=model.parameters,
        hidden_size=model.hidden_size,
        layers=model.layers,
        positions=sequences * longest,
        factors=model.lora_factors(settings["lora"]["rank"]) if "lora" in settings else None,
    )
    if settings["kind"] not in ("pretrain", "sft"):  # what generates under ZeRO 3, and what the KL divergence is from
        students = (settings["zero_stage"] == 3) + _has_reference(settings)
        memory += beside_bytes(settings["precision"], model.parameters, students, 0)
    disk = kept * FLOAT32 * model.parameters
    evaluation += trained.get("evaluation", 0)
    return Part(
        f"{MODEL}{name}", {**trained, "evaluation": evaluation}, disk, settings["num_processes"], memory, judging
    )


def _training(
    plan: Plan, settings: Mapping[str, Any], work: Work, model: Architecture, limit: float
) -> tuple[dict[str, float], float, float, int]:
    """GPU seconds by stage; sequences of a pass and their longest completion; how many copies of weights stay."""
    steps = settings["steps"]
    if settings["kind"] in ("pretrain", "sft"):  # corpus and responses are taken for as long as the runs' completions
        size = settings["batch_size"]
        sequences = settings.get("micro_batch", size / settings["num_processes"])
        if settings.get("data") == "samples":
            limit = settings["sampling"]["max_new_tokens"]
        kept = 1 if settings["kind"] == "pretrain" else 1 + len(powers_of_two(steps))
        return {"updates": steps * work.update(model, size, limit)}, sequences, limit, kept
    limit, size = settings["max_new_tokens"], settings["prompts_per_step"] * settings["samples_per_prompt"]
    draws = min(plan.config["estimate"]["draws"], settings["max_draws"]) if "max_draws" in settings else 1
    # Values of PPO's head come with the log-probs before an update, and with the update itself.
    own = settings["kind"] == "ppo" or settings["epochs"] * settings["minibatches"] > 1
    seconds = {
        "rollouts": steps * work.generate(model, draws * size, limit),
        "scores": steps * (own + _has_reference(settings)) * work.forward(model, size, limit),
        "updates": steps * settings["epochs"] * work.update(model, size, limit),
    }
    if stopping := settings.get("early_stopping"):
        seconds["evaluation"] = steps // stopping["every"] * work.generate(model, stopping["problems"], limit)
    sequences = settings.get("micro_batch", size / settings["minibatches"] / settings["num_processes"])
    return seconds, sequences, limit, 1 + len(powers_of_two(steps))


def of_samples(plan: Plan, name: str, model: Architecture) -> Part:
    """Samples of a model for others to learn, which these share."""
    sampling = plan.samples[name]
    sequences = sampling.get("problems", problems(plan, "train")) * float(sampling["samples"])
    work, limit = Work.of(plan, 1).alone(model), sampling["max_new_tokens"]
    seconds = {"rollouts": work.generate(model, sequences, limit)}
    return Part(f"{SAMPLES}{name}", seconds, sequences * work.share * limit * BYTES_A_TOKEN)


def of_prediction(plan: Plan, name: str, student: Architecture, teacher: Architecture) -> Part:
    """Weights predicted from a run's states with each seed: their gate and their evaluation."""
    settings, points = plan.predictions[name], len(plan.prediction_steps(name))
    training = plan.runs[plan.predicted_from(name)]["training"]
    alone, limit = Work.of(plan, 1).alone(student), training["max_new_tokens"]
    rollouts, horizon = _rollouts(training)
    seconds = {
        "gates": points * alone.gate(settings, student, teacher, rollouts=rollouts, horizon=horizon, limit=limit),
        "evaluation": points * alone.measure(student, teacher, evaluated(plan), limit),
    }
    seeds = len(plan.seeds)
    disk = seeds * points * FLOAT32 * student.parameters
    return Part(name, {stage: seeds * value for stage, value in seconds.items()}, disk)


def of_validations(plan: Plan, run: str, student: Architecture) -> Part:
    """The evaluations of a run's states on the validation split, which predictions from them may ask for and share."""
    steps = {
        (seed, validated)
        for name, seed, step in plan.predicted_points()
        if plan.predicted_from(name) == run
        for validated in plan.validated_behind(name, step)
    }
    training, alone = plan.runs[run]["training"], Work.of(plan, 1).alone(student)
    each = alone.generate(student, evaluated(plan, "validation"), training["max_new_tokens"])
    return Part(f"{run}, validated", {"gates": len(steps) * each} if steps else {})


def of_interventions(plan: Plan, subject: str, student: Architecture, teacher: Architecture) -> Part:
    """The interventions on a subject's weights; each variant counts, also one that equals another."""
    settings = plan.config["dynamics"]
    chosen = read_section(InterventionSettings, plan.intervention_settings(), "config: `dynamics`")
    planned = variants(chosen, plan.subject_steps(subject), student.layers, own_head=not student.tied)
    limit = plan.runs[plan.dynamics_run(subject)]["training"]["max_new_tokens"]
    asked = min(settings["problems"], problems(plan, "test")) * settings["samples"]
    alone = Work.of(plan, 1).alone(student)
    seconds = len(planned) * alone.measure(student, teacher, asked, limit)
    if "representation" in settings["interventions"]:  # base and state read what the base wrote
        passes = 2 * len(plan.subject_steps(subject))
        seconds += alone.generate(student, asked, limit) + passes * alone.forward(student, asked, limit)
    return Part(subject, {"evaluation": seconds})


def of_local_theory(plan: Plan, names: tuple[str, str], student: Architecture) -> Part:
    """The local theory of a student and teacher: products with the curvature, one at every state, and their basis."""
    theory = plan.config["dynamics"]["local_theory"]
    completions = min(theory["completions"], problems(plan, "test"))
    runs = [run for run in plan.dynamics_runs if plan.roles(run) == names]
    limit = max(plan.runs[run]["training"]["max_new_tokens"] for run in runs)
    states = len(plan.dynamics_seeds) * sum(len(plan.boundaries(run)) for run in runs)
    products = 2 * theory["iterations"] + states  # from the gradient, and from a random control
    seconds = DERIVATIVE_PASSES * products * Work.of(plan, 1).alone(student).forward(student, completions, limit)
    basis = (theory["iterations"] + 1) * FLOAT32 * student.parameters  # and b
    activations = activation_bytes(
        completions * (longest_prompt(plan) + limit), student.hidden_size, student.layers, "float32", False
    )
    held = basis + FLOAT32 * student.parameters
    return Part(f"{LOCAL_THEORY}, {names[0]} to {names[1]}", {"evaluation": seconds}, basis, 1, held + activations)


def frozen_bytes(plan: Plan, name: str, model: Architecture) -> float:
    """A model's weights if it is not trained."""
    return width_of(frozen_dtype(plan.config["models"][name])) * model.parameters


def problems(plan: Plan, split: str, task: str | None = None) -> int:
    """The problems of a split that something is evaluated on, as far as the configuration knows."""
    found = plan.task(task)["splits"][split]
    rows = found if isinstance(found, int) else found.get("rows")
    return int(rows or plan.config["estimate"]["test_problems"])


def evaluated(plan: Plan, split: str = "test") -> float:
    """The completions of an evaluation."""
    return problems(plan, split) * float(plan.config["evaluation"]["samples"])


def _rollouts(training: Mapping[str, Any]) -> tuple[int, int]:
    """The rollouts that a step of a run trains on, and the longest of them in tokens."""
    rollouts = training["prompts_per_step"] * training["samples_per_prompt"]
    return rollouts, training["horizon"].get("tokens", training["max_new_tokens"])


def _on_other_tasks(plan: Plan, alone: Work, model: Architecture, limit: float) -> float:
    """A model's, or a last state's, answers to the problems of other tasks, which no teacher scores."""
    seconds = 0.0
    for task in plan.other_tasks:
        samples = plan.config["evaluation"]["tasks"][task]["samples"]
        seconds += alone.generate(model, problems(plan, "test", task) * float(samples), limit)
    return seconds


def longest_prompt(plan: Plan) -> float:
    """Tokens of the longest prompt."""
    limits = plan.config["task"].get("prompt", {})
    return float(limits.get("max_tokens", plan.config["estimate"]["prompt_tokens"]))


def _has_reference(settings: Mapping[str, Any]) -> bool:
    """Whether reinforcement learning holds the model that it started from beside the one in training."""
    return bool(settings["measure_kl"] or settings.get("kl_coefficient"))
