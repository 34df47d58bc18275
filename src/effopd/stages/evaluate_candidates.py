"""The gate: scores the current weights and, as far as the search asks, candidates on the ray of the last update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.artifacts.manifests import Manifest, fingerprint_of, read_manifest, write_manifest
from effopd.common.errors import ArtifactError, ConfigError
from effopd.common.progress import say
from effopd.common.registry import is_added
from effopd.data.prompts import Prompts, load_prompts
from effopd.data.rollouts import Rollouts
from effopd.distillation.step_artifacts import ROLLOUTS
from effopd.engines.base import RolloutEngine, build_engine, longest_context
from effopd.evaluation.added_gate import AddedGate
from effopd.evaluation.measure import measure
from effopd.evaluation.rollout_gate import RolloutGate
from effopd.extrapolation.candidates import RayInMemory, moving_or_refuse
from effopd.extrapolation.driver import extrapolate
from effopd.extrapolation.gate import BLIND, BlindGate, Gate, GateValue, gate_rows, gate_seeds
from effopd.extrapolation.modules import by_module
from effopd.models.lm_head import restricted
from effopd.models.models import Weights, dtype_of, load_frozen, load_model, load_tokenizer, special_ids
from effopd.specs.extrapolation import DifficultySettings, RaySettings
from effopd.specs.triggers import EvaluateCandidates, GateSpec
from effopd.tasks.base import Task, build_task
from effopd.teachers.scoring import ReverseKL
from effopd.training.checkpoints import Point


def evaluate_candidates(
    spec: EvaluateCandidates,
    *,
    student: Path,
    teacher: Path,
    prompts: Path,
    state: Path,
    anchor: Path,
    anchor_decision: Path | None,
    out: Path,
    device: torch.device,
) -> None:
    """Score candidates of the state at spec.step, as far as the search asks, and write the manifest `out`.

    If the spec has a `coefficient` (0: the weights as they are), only that candidate is scored, whatever others are
    worth. `anchor` is the state (or model) of the previous trigger and `anchor_decision` what was accepted there.
    """
    started = time.time()
    settings = spec.extrapolation
    prompts_manifest, teacher_manifest = read_manifest(prompts, "prompts"), read_manifest(teacher, "model")
    point, anchor_point = Point.open(state), Point.open(anchor, anchor_decision)
    if point.step != spec.step:
        raise ArtifactError(f"{state} is at step {point.step} where step {spec.step} is needed.")
    ray = ray_of(point, anchor_point, settings)
    source = gate_source(spec, prompts_manifest, [state])
    with opened_gate(spec, source, student, teacher, device, ray.weights) as gate:
        if spec.coefficient is not None:
            coefficient = spec.coefficient
            ray.put(dict.fromkeys(ray.modules, coefficient))
            values: Mapping[float, GateValue] = {coefficient: gate.judge(coefficient)}
            said = f"x{coefficient:g} scores {values[coefficient].usable_score:.4g}"
        else:
            decision = extrapolate(ray, gate, settings)
            values, trials = decision.values, decision.result.trials
            tried = ", ".join(f"x{t.coefficient:g} {'accepted' if t.accepted else 'rejected'}" for t in trials)
            said = tried or decision.result.reason
    parents = {"prompts": prompts_manifest.fingerprint, "teacher": teacher_manifest.fingerprint, **point.parents}
    parents |= {f"anchor {name}": value for name, value in anchor_point.parents.items()}
    entries = [value.entry(coefficient) for coefficient, value in values.items()]
    result = {"step": spec.step, "update_norm": ray.update_norm(), "values": entries}
    cost = [row for coefficient, value in values.items() for row in value.costs(coefficient)]
    write_manifest(
        out, kind="candidates", spec=spec.content, parents=parents, result=result, cost=cost, started=started
    )
    say(f"done: {said}")


def ray_of(point: Point, anchor: Point, settings: RaySettings) -> RayInMemory:
    """The weights of a state, on the ray from the "accepted" or "raw" weights of the last trigger (paper section 2)."""
    current = point.weights()
    start = anchor.weights() if settings.anchor == "accepted" else anchor.raw_weights()
    return RayInMemory(current, start, by_module(moving_or_refuse(current, settings.parameters)))


def gate_source(spec: GateSpec, prompts: Manifest, states: Sequence[Path]) -> Prompts | Rollouts:
    """What the gate of a trigger asks about: a split, or what the last step before spec.step was trained on."""
    if spec.extrapolation.gate.source == "rollouts":
        return rollouts_of(next(point for point in map(Point.open, states) if point.step == spec.step))
    return load_prompts(prompts, spec.extrapolation.gate.source)


def rollouts_of(point: Point) -> Rollouts:
    """The rollouts that the last step before a state trained on. Raises ArtifactError if they are not whole."""
    path = point.manifest.path.parents[2] / f"rollouts/step{point.step}.json"
    spec = {key: value for key, value in point.manifest.spec.items() if key != "end"} | {"step": point.step}
    manifest = read_manifest(path, ROLLOUTS.name)
    if manifest.fingerprint != fingerprint_of(ROLLOUTS.name, spec, point.manifest.parents):
        raise ArtifactError(
            f"{path} is not what {point.manifest.path} was trained on. Delete both and run the workflow again."
        )
    return ROLLOUTS.open(manifest)


@contextmanager
def opened_gate(
    spec: GateSpec,
    source: Prompts | Rollouts,
    student: Path,
    teacher: Path,
    device: torch.device,
    weights: Callable[[], Weights],
) -> Iterator[Gate]:
    """The gate of the configuration, which judges what `weights` returns when it is asked.

    Raises ConfigError if the source has too few problems.
    """
    settings, sampling = spec.extrapolation.gate, spec.sampling
    if settings.metric in BLIND:
        yield BlindGate(settings.metric, spec.seed, spec.step)
        return
    rows = _draw(spec, source)
    chosen, task, tokenizer = source.select(rows), build_task(spec.task), load_tokenizer(student.parent)
    model = restricted(load_model(student.parent, device, dtype_of(spec.precision)), tokenizer)
    load_scorer = partial(load_frozen, teacher.parent, device)
    added: Callable[..., Gate] | None = None
    if is_added("gates", settings.metric):
        place = spec.seed, spec.step, sampling
        added = partial(AddedGate, settings, *place, chosen, weights, model, tokenizer, task, load_scorer)
        if isinstance(chosen, Rollouts):
            yield added()
            return
    scorer = load_scorer() if settings.metric == "reverse_kl" else None
    if isinstance(chosen, Rollouts):
        assert scorer is not None  # the configuration's check lets nothing else judge rollouts
        _, pad_id = special_ids(tokenizer)
        divergence = ReverseKL(scorer, chosen, pad_id=pad_id, batch_size=len(rows), temperature=sampling.temperature)
        yield RolloutGate(model, weights, divergence, step=spec.step, tokens=chosen.completion_tokens)
        return
    context = longest_context(chosen.tokens, sampling.max_new_tokens)
    with closing(build_engine(spec.engine, model, tokenizer, batch_size=len(rows), context=context)) as engine:
        own = ProblemGate(spec, chosen, rows, weights, engine, task, tokenizer, model, scorer)
        yield own if added is None else added(engine)


def _draw(spec: GateSpec, source: Prompts | Rollouts) -> list[int]:
    """The rows of the source that the gate asks about. Raises ConfigError if there are too few."""
    settings = spec.extrapolation.gate
    eligible, examples = list(range(len(source))), settings.examples
    limited = settings.difficulty != DifficultySettings()
    if isinstance(source, Rollouts):
        examples = min(examples, len(eligible))
    elif limited:
        low = -math.inf if settings.difficulty.min is None else settings.difficulty.min
        high = math.inf if settings.difficulty.max is None else settings.difficulty.max
        levels = [problem.difficulty for problem in source.problems]
        eligible = [row for row, level in enumerate(levels) if level is not None and low <= level <= high]
    if examples > len(eligible):
        chosen = " of the `difficulty` asked for" if limited else ""
        raise ConfigError(
            f"config: `extrapolation.gate.examples` is {examples}, and the {settings.source} split holds "
            f"{len(eligible)} problems{chosen}. Lower it, or choose from more problems."
        )
    drawn = gate_rows(spec.seed, settings.source, len(eligible), examples, settings.samples)
    return [eligible[row] for row in drawn]


@dataclass
class ProblemGate:
    """Judges the answers that weights give to problems of a split, anew for every candidate.

    By their mean reward or, if there is a teacher, by their exact reverse KL to it.
    """

    spec: GateSpec
    problems: Prompts
    rows: Sequence[int]
    weights: Callable[[], Weights]
    engine: RolloutEngine
    task: Task
    tokenizer: PreTrainedTokenizerFast
    model: PreTrainedModel
    teacher: PreTrainedModel | None

    def judge(self, coefficient: float) -> GateValue:
        self.engine.load_weights(self.weights())
        sampling, step = self.spec.sampling, self.spec.step
        paired = self.spec.extrapolation.gate.paired
        measured = measure(
            self.engine,
            self.task,
            self.tokenizer,
            self.problems,
            gate_seeds(self.spec.seed, step, coefficient, len(self.rows), paired),
            sampling,
            self.rows,
            student=self.model,
            teacher=self.teacher,
            batch_size=len(self.rows),
            policy_temperature=sampling.temperature,
        )
        cost = measured.cost("gate", step)
        if self.teacher is None:
            accuracy = measured.accuracy if measured.finite else math.nan
            return GateValue(accuracy, accuracy, measured.items["reward"].tolist(), cost)
        return GateValue(measured.reverse_kl, -measured.reverse_kl, measured.items["reverse_kl"].tolist(), cost)
