"""Preflight: what must hold of a student, a teacher and a task before anything is trained with them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from effopd.artifacts.manifests import host_facts, package_versions, read_manifest, write_json
from effopd.common.errors import ConfigError, PreflightError
from effopd.common.progress import say
from effopd.common.randomness import generator, seed_of
from effopd.config.runtime_options import endpoint_of
from effopd.data.prompts import Prompts, load_prompts
from effopd.data.rollouts import Rollouts
from effopd.data.verification import verify_rollouts
from effopd.engines.base import build_engine, longest_context
from effopd.models.lm_head import LOGITS_AT_ONCE, KnownTokens, restricted
from effopd.models.models import dtype_of, load_frozen, load_model, load_tokenizer, model_config, special_ids
from effopd.preflight.agreement import (
    check_determinism,
    check_endpoint,
    check_engine,
    check_identity,
    check_start,
    check_weights,
)
from effopd.preflight.findings import Checks
from effopd.preflight.judging import check_accuracy, check_gate, check_verifier
from effopd.preflight.resources import available_memory, check_disk, check_memory, free_disk
from effopd.preflight.tokens import check_chat_template, check_eos, check_lengths, check_tokenizer
from effopd.specs.engines import EngineSettings, Sampling
from effopd.specs.preflight import CheckedTraining, Preflight
from effopd.tasks.base import Task, build_task
from effopd.teachers.endpoint import EndpointTeacher
from effopd.teachers.scoring import LocalTeacher, Teacher, measure_logprobs, measure_reverse_kl
from effopd.training.lora import factors_size
from effopd.workflow.estimates.memory import beside_bytes, logits_bytes, resident_bytes, state_bytes, trained_bytes

# A teacher, which answers here alone, does so in the type that it is held in.
TEACHERS_ENGINE = EngineSettings("transformers")
OF_STUDENT = ("student_weights", "engine")
OF_TEACHER = ("teacher_weights", "determinism", "identity", "start_kl", "teacher_accuracy", "memory")


def preflight(spec: Preflight, *, student: Path, teacher: Path, prompts: Path, out: Path, device: torch.device) -> None:
    """Check a pair of models and write `out`, which says that they may be trained together.

    What was measured goes beside it, as <name>.checks.json, whether or not a check failed. `out` itself holds nothing
    but what the pair is: made again it has the same bytes, so that checking anew retrains nothing. Raises
    PreflightError, a line a failure, where a check fails that `preflight.accept` does not name.
    """
    started = time.time()
    student_manifest, teacher_manifest = read_manifest(student, "model"), read_manifest(teacher, "model")
    prompts_manifest = read_manifest(prompts, "prompts")
    pair = {"student": student_manifest.fingerprint, "teacher": teacher_manifest.fingerprint}
    checks = Checks(spec.preflight.accept)
    subjects = {"student": _Subject.open(student.parent), "teacher": _Subject.open(teacher.parent)}
    _check_top_k(spec.top_k, subjects)
    sample = _sample(load_prompts(prompts_manifest, "train"), spec.preflight.problems)
    facts = prompts_manifest.result["train"]
    longest = max(prompts_manifest.result[split]["longest"] for split in ("train", "validation", "test"))

    readable = _check_tokens(checks, subjects, sample, spec)
    checks.run(
        "lengths", check_lengths, longest, spec.training.max_new_tokens,
        {role: subject.positions for role, subject in subjects.items()}, facts["too_long"], facts["prompts"],
    )  # fmt: skip
    task = build_task(spec.task)
    checks.run("verifier", check_verifier, task, sample.problems)
    if readable:
        _check_models(checks, subjects, sample, task, longest, spec, out.parent.parent, device)
    else:
        left_out = (*_of_student(spec), *OF_TEACHER, "disk")
        checks.leave_out(left_out, "nothing can be computed before tokenizer and EOS are right")

    write_json(
        out.with_suffix(".checks.json"),
        {
            **pair,
            "recorded": {
                "checks": checks.rows(),
                "seconds": round(time.time() - started, 3),
                "versions": package_versions(),
                "host": host_facts(),
            },
        },
    )
    for finding in checks.findings:
        say(f"{finding.outcome:>8}  {finding.check}: {finding.measured}")
    if checks.failures:
        raise PreflightError("\n".join(finding.line for finding in checks.failures))
    write_json(out, {**pair, "prompts": prompts_manifest.fingerprint, "training": spec.content["training"]})
    say(f"done: {checks.count()} in {time.time() - started:.1f} s")


def _of_student(spec: Preflight) -> tuple[str, ...]:
    """The checks that need the student's weights, in the order in which they are made."""
    return (*OF_STUDENT, *(["gate"] if spec.gates else []))


def _check_top_k(top_k: int, subjects: Mapping[str, _Subject]) -> None:
    """Raise ConfigError if a model knows no more than the `top_k` likeliest tokens that an objective keeps apart."""
    tokens = min(len(subjects["student"].tokenizer), *(subject.rows for subject in subjects.values()))
    if top_k >= tokens:
        raise ConfigError(
            f"config: `training.objective.top_k` is {top_k}, and student and teacher know {tokens} tokens. Lower it to "
            f"{tokens - 1} or less, or write `support: full`."
        )


@dataclass(frozen=True)
class _Subject:
    """What is known of a model without its weights."""

    folder: Path
    tokenizer: PreTrainedTokenizerFast
    rows: int  # of the embedding
    positions: int | None
    hidden_size: int
    intermediate_size: int
    layers: int
    eos: list[int]  # of the generation config; empty if it says nothing

    @staticmethod
    def open(folder: Path) -> _Subject:
        config = model_config(folder)
        ends = config.eos_token_id
        if (folder / "generation_config.json").is_file():
            ends = GenerationConfig.from_pretrained(str(folder), local_files_only=True).eos_token_id or ends
        eos = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        positions = getattr(config, "max_position_embeddings", None)
        return _Subject(
            folder,
            load_tokenizer(folder),
            config.vocab_size,
            positions,
            config.hidden_size,
            getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            config.num_hidden_layers,
            eos,
        )


def _sample(prompts: Prompts, count: int) -> Prompts:
    """That many of the prompts, always the same."""
    order = generator("preflight").permutation(len(prompts))[:count]
    return prompts.select(sorted(int(row) for row in order))


def _check_tokens(checks: Checks, subjects: Mapping[str, _Subject], sample: Prompts, spec: Preflight) -> bool:
    """Whether both models read and end text alike, so that one can score what the other writes."""
    own, other = subjects["student"].tokenizer, subjects["teacher"].tokenizer
    texts = [problem.text for problem in sample.problems]
    rows = {role: subject.rows for role, subject in subjects.items()}
    same_tokens = checks.run("tokenizer", check_tokenizer, own, other, rows, texts)
    ends = {role: subject.eos for role, subject in subjects.items()}
    same_end = checks.run("eos", check_eos, own, other, ends)
    checks.run("chat_template", check_chat_template, own, other, texts, spec.prompt)
    return same_tokens and (same_end or "eos" in checks.accepted)


@dataclass
class _Sampled:
    """What a model answered, at the temperature of training."""

    rollouts: Rollouts
    rewards: list[float]

    @property
    def finished(self) -> float:
        return sum(self.rollouts.finished) / len(self.rollouts)


def _check_models(
    checks: Checks,
    subjects: Mapping[str, _Subject],
    sample: Prompts,
    task: Task,
    longest: int,
    spec: Preflight,
    results: Path,
    device: torch.device,
) -> None:
    """Load one model after the other, have each answer the sample, and compare what they compute."""
    training, size = spec.training, spec.training.batch_size
    seen = [subject.positions for subject in subjects.values() if subject.positions is not None]
    room = max(1, min(seen) - max(map(len, sample.tokens))) if seen else math.inf  # `lengths` speaks of too little
    limit = int(min(training.max_new_tokens, spec.preflight.max_new_tokens, room))
    sampling = Sampling(training.temperature, limit)
    tokenizer = subjects["student"].tokenizer
    _, pad_id = special_ids(tokenizer)

    def answers(model: PreTrainedModel, role: str, engine: EngineSettings) -> _Sampled:
        seeds = [seed_of("preflight", role, row) for row in range(len(sample))]
        context = longest_context(sample.tokens, sampling.max_new_tokens)
        with closing(build_engine(engine, model, tokenizer, batch_size=size, context=context)) as generating:
            rollouts = generating.generate(sample.tokens, seeds, sampling)
        return _Sampled(rollouts, verify_rollouts(task, tokenizer, sample.problems, rollouts)["reward"])

    model = restricted(load_model(subjects["student"].folder, device, dtype_of(training.precision)), tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    missing = _states_to_write(results, spec.states)
    factors = factors_size(model, training.lora) if training.lora is not None else None
    checks.run("disk", check_disk, missing * state_bytes(parameters, factors), free_disk(results), results)
    if not checks.run("student_weights", check_weights, "student", dict(model.named_parameters())):
        checks.leave_out((*_of_student(spec)[1:], *OF_TEACHER), "the student's weights are not finite")
        return
    student = answers(model, "student", training.engine)
    recomputed = measure_logprobs(
        model, student.rollouts, pad_id=pad_id, batch_size=size, temperature=training.temperature
    )
    exact = {training.precision, training.engine.dtype} == {"float32"}
    precision = "float32" if exact else "bfloat16"
    checks.run("engine", check_engine, student.rollouts.logprobs, recomputed, precision)
    if spec.gates:
        checks.run("gate", check_gate, student.rewards, spec.gates, student.finished, sampling.max_new_tokens)
    own = LocalTeacher(model, pad_id=pad_id, batch_size=size).score(student.rollouts).logprobs  # at temperature 1
    del model
    gc.collect()

    model = load_frozen(subjects["teacher"].folder, device)
    if not checks.run("teacher_weights", check_weights, "teacher", dict(model.named_parameters())):
        checks.leave_out(OF_TEACHER[1:], "the teacher's weights are not finite")
        return
    scorer: Teacher = LocalTeacher(model, pad_id=pad_id, batch_size=size)
    scores = scorer.score(student.rollouts).logprobs
    if training.scored_by == "endpoint":
        served, size = endpoint_of(training.teacher), KnownTokens.of(tokenizer).size
        scorer, here = EndpointTeacher(served, tokenizer, top_k=spec.top_k, vocabulary=size), scores
        scores = scorer.score(student.rollouts).logprobs
        checks.run("endpoint", check_endpoint, scores, here, str(model.dtype).removeprefix("torch."))
    teacher = answers(model, "teacher", TEACHERS_ENGINE)  # between the two scorings, as in training
    checks.run("determinism", check_determinism, scores, scorer.score(student.rollouts).logprobs)
    divergences = measure_reverse_kl(model, model, teacher.rollouts, pad_id=pad_id, batch_size=size)
    checks.run("identity", check_identity, divergences)
    checks.run("start_kl", check_start, own, scores)
    checks.run(
        "teacher_accuracy", check_accuracy, student.rewards, teacher.rewards, (student.finished, teacher.finished),
        sampling.max_new_tokens,
    )  # fmt: skip
    students, asked = spec.beside
    held = sum(parameter.nbytes for parameter in model.parameters())
    beside = beside_bytes(training.precision, parameters, students, asked * held)
    needed = _update_memory(training, parameters, factors, subjects["student"], longest, beside, device)
    available, kind = available_memory(device)
    processes = training.num_processes if device.type == "cpu" else 1  # that share what is available
    checks.run("memory", check_memory, processes * needed, available, kind)


def _update_memory(
    training: CheckedTraining,
    parameters: int,
    factors: int | None,
    student: _Subject,
    longest: int,
    beside: float,
    device: torch.device,
) -> float:
    """Bytes of an update on each rank's device: the model with its optimizer, activations, logits, models beside it."""
    positions = (training.micro_batch or training.batch_size) * (longest + training.max_new_tokens)
    checkpointing = training.gradient_checkpointing
    if device.type == "cpu" and training.zero_stage == 0 and factors is None and not checkpointing:
        return resident_bytes(
            parameters=parameters,
            hidden_size=student.hidden_size,
            intermediate_size=student.intermediate_size,
            layers=student.layers,
            vocabulary=student.rows,
            positions=positions,
            at_once=LOGITS_AT_ONCE,
            passes=2,  # or more: a step may have several batches
            beside=beside,
        )
    held = trained_bytes(
        training,
        parameters=parameters,
        hidden_size=student.hidden_size,
        layers=student.layers,
        positions=positions,
        factors=factors,
    )
    return held + beside + logits_bytes(positions, student.rows, LOGITS_AT_ONCE)


def _states_to_write(results: Path, states: Sequence[tuple[str, int, int]]) -> int:
    """How many of the states (run, seed, step) that the plan keeps are not there yet."""
    return sum(not (results / f"runs/{run}/seed{seed}/state/{step}/state.json").is_file() for run, seed, step in states)
