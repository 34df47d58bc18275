"""The gate: scores the current weights and, as far as the search asks, candidates on the ray of the last update."""

from __future__ import annotations

import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from effopd.artifacts.cost import cost_row
from effopd.artifacts.manifests import fingerprint_of, read_manifest, write_manifest
from effopd.common.errors import ArtifactError, ConfigError
from effopd.common.progress import say
from effopd.data.prompts import Prompts, load_prompts
from effopd.data.rollouts import Rollouts
from effopd.distillation.step_artifacts import ROLLOUTS
from effopd.engines.base import RolloutEngine, Sampling, build_engine, longest_context
from effopd.evaluation.measure import measure
from effopd.extrapolation.candidates import candidate, delta_norms, moving_or_refuse
from effopd.extrapolation.gate import BLIND, GateValue, blind_value, gate_rows, gate_seeds, score_of
from effopd.extrapolation.search import search
from effopd.models.lm_head import restricted
from effopd.models.models import (
    Weights,
    dtype_of,
    load_frozen,
    load_model,
    load_tokenizer,
    load_weights_into,
    special_ids,
)
from effopd.tasks.base import build_task
from effopd.teachers.scoring import ReverseKL
from effopd.training.checkpoints import Point


def evaluate_candidates(
    spec: dict[str, Any],
    *,
    student: Path,
    teacher: Path,
    prompts: Path,
    state: Path,
    anchor: Path,
    anchor_ledger: Path | None,
    out: Path,
    device: torch.device,
) -> None:
    """Score candidates of the state at spec["step"], as far as the search asks, and write the manifest `out`.

    `anchor` is the state (or model) of the previous trigger and `anchor_ledger` what was accepted there.
    """
    started = time.time()
    extrapolation = spec["extrapolation"]
    trigger = _Trigger(spec, student, teacher, prompts, state, anchor, anchor_ledger, device)
    with closing(trigger.gate):
        outcome = search(
            extrapolation["search"],
            trigger.score,
            trigger.score(0.0),
            extrapolation["coefficients"],
            extrapolation["accept"],
        )
    trigger.write(out, spec, started)
    tried = ", ".join(f"x{t.coefficient:g} {'accepted' if t.accepted else 'rejected'}" for t in outcome.trials)
    say(f"done: {tried or outcome.reason}")


def evaluate_candidate(
    spec: dict[str, Any],
    *,
    student: Path,
    teacher: Path,
    prompts: Path,
    state: Path,
    anchor: Path,
    anchor_ledger: Path | None,
    out: Path,
    device: torch.device,
) -> None:
    """Score the one candidate spec["coefficient"] (0: the weights as they are), whatever the others are worth."""
    started = time.time()
    trigger = _Trigger(spec, student, teacher, prompts, state, anchor, anchor_ledger, device)
    with closing(trigger.gate):
        value = trigger.score(spec["coefficient"])
    trigger.write(out, spec, started)
    say(f"done: x{spec['coefficient']:g} scores {value:.4g}")


class _Trigger:
    """The weights at a trigger and the ray of the last update, with the gate that scores points on it."""

    def __init__(
        self,
        spec: dict[str, Any],
        student: Path,
        teacher: Path,
        prompts: Path,
        state: Path,
        anchor: Path,
        anchor_ledger: Path | None,
        device: torch.device,
    ) -> None:
        extrapolation = spec["extrapolation"]
        prompts_manifest, teacher_manifest = read_manifest(prompts, "prompts"), read_manifest(teacher, "model")
        point, anchor_point = Point.open(state), Point.open(anchor, anchor_ledger)
        if point.step != spec["step"]:
            raise ArtifactError(f"{state} is at step {point.step} where step {spec['step']} is needed.")
        self.current, self.anchor = point.weights(), anchor_of(anchor_point, extrapolation["anchor"])
        self.moving = moving_or_refuse(self.current, extrapolation["parameters"])
        self.parents = {"prompts": prompts_manifest.fingerprint, "teacher": teacher_manifest.fingerprint}
        self.parents |= point.parents
        self.parents |= {f"anchor {name}": value for name, value in anchor_point.parents.items()}
        source: Prompts | Rollouts
        if extrapolation["gate"]["source"] == "rollouts":
            source = rollouts_of(point)
        else:
            source = load_prompts(prompts_manifest, extrapolation["gate"]["source"])
        self.gate = Gate(spec, source, student, teacher, device)

    def score(self, coefficient: float) -> float:
        """What the gate says of a coefficient (0: the current weights), higher is better."""
        weights = self.current
        if coefficient != 0:
            weights = candidate(self.current, self.anchor, coefficient, self.moving)
        return self.gate.score(weights, coefficient)

    def write(self, out: Path, spec: dict[str, Any], started: float) -> None:
        norm = delta_norms(self.current, self.anchor, self.moving)
        result = {"step": spec["step"], "update_norm": norm, "values": self.gate.values}
        write_manifest(
            out,
            kind="candidates",
            spec=spec,
            parents=self.parents,
            result=result,
            cost=self.gate.costs,
            started=started,
        )


def anchor_of(point: Point, which: str) -> Weights:
    """The weights from which the last update is measured: "accepted" or "raw" (paper section 2)."""
    return point.weights() if which == "accepted" else point.raw_weights()


def rollouts_of(point: Point) -> Rollouts:
    """The rollouts that the last step before a state trained on. Raises ArtifactError where they are not whole."""
    path = point.manifest.path.parents[2] / f"rollouts/step{point.step}.json"
    spec = {key: value for key, value in point.manifest.spec.items() if key != "end"} | {"step": point.step}
    manifest = read_manifest(path, ROLLOUTS.name)
    if manifest.fingerprint != fingerprint_of(ROLLOUTS.name, spec, point.manifest.parents):
        raise ArtifactError(
            f"{path} is not what {point.manifest.path} was trained on. Delete both and run the workflow again."
        )
    return ROLLOUTS.open(manifest)


class Gate:
    """Scores weights on the gate's problems, and remembers every value with its cost.

    `source` is a split, whose problems every candidate answers anew, or the rollouts of the step itself: then nothing
    is generated, and the reverse KL is taken at the contexts that the student met when it wrote them. They are those
    of the weights before the step, so a candidate is judged where the student has been, not where it would go.
    """

    def __init__(
        self, spec: dict[str, Any], source: Prompts | Rollouts, student: Path, teacher: Path, device: torch.device
    ) -> None:
        self.spec, self.settings = spec, spec["extrapolation"]["gate"]
        self.values: list[dict[str, Any]] = []
        self.costs: list[dict[str, Any]] = []
        self.engine: RolloutEngine | None = None
        if self.settings["metric"] in BLIND:
            return
        self.rows = self._draw(source)
        self.task, self.tokenizer = build_task(spec["task"]), load_tokenizer(student.parent)
        self.source = source.select(self.rows)
        self.model = restricted(load_model(student.parent, device, dtype_of(spec["precision"])), self.tokenizer)
        self.teacher = load_frozen(teacher.parent, device) if self.settings["metric"] == "reverse_kl" else None
        if isinstance(self.source, Rollouts):
            assert self.teacher is not None  # the configuration's check lets nothing else judge rollouts
            _, pad_id = special_ids(self.tokenizer)
            temperature = spec["sampling"]["temperature"]
            self.divergence = ReverseKL(
                self.teacher, self.source, pad_id=pad_id, batch_size=len(self.rows), temperature=temperature
            )
        else:
            context = longest_context(self.source.tokens, spec["sampling"]["max_new_tokens"])
            self.engine = build_engine(
                spec["engine"], self.model, self.tokenizer, batch_size=len(self.rows), context=context
            )

    def _draw(self, source: Prompts | Rollouts) -> list[int]:
        """The rows of the source that the gate asks about. Raises ConfigError where there are too few."""
        eligible, examples = list(range(len(source))), self.settings["examples"]
        if isinstance(source, Rollouts):
            examples = min(examples, len(eligible))
        elif wanted := self.settings["difficulty"]:
            low, high = wanted.get("min", -math.inf), wanted.get("max", math.inf)
            levels = [problem.difficulty for problem in source.problems]
            eligible = [row for row, level in enumerate(levels) if level is not None and low <= level <= high]
        if examples > len(eligible):
            chosen = " of the `difficulty` asked for" if self.settings["difficulty"] else ""
            raise ConfigError(
                f"config: `extrapolation.gate.examples` is {examples}, and the {self.settings['source']} split holds "
                f"{len(eligible)} problems{chosen}. Lower it, or choose from more problems."
            )
        seed, samples = self.spec["seed"], self.settings["samples"]
        drawn = gate_rows(seed, self.settings["source"], len(eligible), examples, samples)
        return [eligible[row] for row in drawn]

    def score(self, weights: Weights, coefficient: float) -> float:
        """The score of a candidate (0: the current weights), higher is better; NaN if it is not finite."""
        metric = self.settings["metric"]
        if metric in BLIND:
            found = blind_value(metric, self.spec["seed"], self.spec["step"], coefficient)
        else:
            value, per_item = self._measure(weights, coefficient)
            found = GateValue(value, value if metric == "accuracy" else -value, per_item)
        self.values.append(found.entry(coefficient))
        return score_of(self.values[-1])

    def close(self) -> None:
        """End its engine, where it needed one."""
        if self.engine is not None:
            self.engine.close()

    def _measure(self, weights: Weights, coefficient: float) -> tuple[float, list[float]]:
        if isinstance(self.source, Rollouts):
            load_weights_into(self.model, weights)
            return self._measure_on_rollouts(self.source, coefficient)
        assert self.engine is not None
        self.engine.load_weights(weights)
        sampling = Sampling(**self.spec["sampling"])
        seed, step = self.spec["seed"], self.spec["step"]
        seeds = gate_seeds(seed, step, coefficient, len(self.rows), self.settings["paired"])
        measured = measure(
            self.engine,
            self.task,
            self.tokenizer,
            self.source,
            seeds,
            sampling,
            self.rows,
            student=self.model,
            teacher=self.teacher,
            batch_size=len(self.rows),
            policy_temperature=sampling.temperature,
        )
        self.costs += [{**row, "coefficient": coefficient} for row in measured.cost("gate", step)]
        if self.teacher is None:
            return (measured.accuracy if measured.finite else math.nan), measured.items["reward"].tolist()
        return measured.reverse_kl, measured.items["reverse_kl"].tolist()

    def _measure_on_rollouts(self, rollouts: Rollouts, coefficient: float) -> tuple[float, list[float]]:
        """The exact reverse KL per token at the contexts of these rollouts, and its sum over each of them."""
        started, tokens = time.perf_counter(), rollouts.completion_tokens
        before = self.divergence.scored_tokens
        per_item = [float(row.sum(dtype=np.float64)) for row in self.divergence.of(self.model)]
        scored, seconds = self.divergence.scored_tokens - before, time.perf_counter() - started
        cost = cost_row("gate: score", self.spec["step"], seconds, scored=scored, judged=tokens)
        self.costs.append({**cost, "coefficient": coefficient})
        return sum(per_item) / tokens, per_item
