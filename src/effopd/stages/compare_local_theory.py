"""What a run's weights did, against what the local theory says (paper section 3, item 10)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from effopd.artifacts.manifests import atomic_path, read_manifest, write_manifest
from effopd.common.errors import ArtifactError
from effopd.common.progress import Progress, say
from effopd.data.rollouts import Rollouts
from effopd.dynamics.krylov import Krylov
from effopd.dynamics.linearized import LinearizedModel, flat, unflattened
from effopd.dynamics.local_theory import (
    cosine,
    descent_coordinates,
    quadratic_change,
    quadratic_change_in_basis,
    share_in_directions,
    steps_of_length,
)
from effopd.dynamics.spectra import decompose
from effopd.models.models import Weights, load_model, load_tensors, load_tokenizer, special_ids
from effopd.models.weight_files import Parameter, parameter_place
from effopd.specs.dynamics import CompareLocalTheory
from effopd.stages.linearize_student import KIND as LINEARIZATION
from effopd.stages.linearize_student import ROLLOUTS, TENSORS, logits_of
from effopd.training.checkpoints import Point

KIND = "local theory"
PATH, GRADIENT = "local_path.parquet", "local_gradient.parquet"
DIRECTIONS = (1, 4, 16)
RATE = 0.1  # of the predicted path, over the largest rate at which it never overshoots, 1 / l_1: smooth from the start


def compare_local_theory(
    spec: CompareLocalTheory,
    *,
    student: Path,
    teacher: Path,
    linearization: Path,
    states: Sequence[Path],
    decisions: Sequence[Path],
    out: Path,
    device: torch.device,
) -> None:
    """The observed update at every state against b, A and the path that they predict.

    The decisions are those of triggers at some of the states; an update is that of the weights from which training goes
    on. Writes beside the manifest `out` the tables `local_path` (one row per step) and `local_gradient` (one row per
    matrix, step and number of directions). Raises ArtifactError if the linearization is of another student or teacher.
    """
    started = time.time()
    linearized = read_manifest(linearization, LINEARIZATION)
    for role, path in (("student", student), ("teacher", teacher)):
        if linearized.parents[role] != read_manifest(path, "model").fingerprint:
            raise ArtifactError(
                f"{linearization} is of another {role} than {path}. Delete it and run the workflow again."
            )
    points = _points(states, decisions)
    model = load_model(student.parent, device)
    _, pad_id = special_ids(load_tokenizer(student.parent))
    rollouts, size = Rollouts.read(linearized.file(ROLLOUTS)), linearized.spec["batch_size"]
    theory = LocalTheory(
        LinearizedModel(model, rollouts, pad_id=pad_id, batch_size=size),
        logits_of(load_model(teacher.parent, device), rollouts, pad_id, size),
        load_tensors(linearized.file(TENSORS)),
        linearized.result,
    )
    rows: dict[str, list[dict[str, Any]]] = {PATH: [], GRADIENT: []}
    progress = Progress("states", len(points))
    for number, point in enumerate(points, start=1):
        weights = {name: tensor.to(device) for name, tensor in point.weights().items()}
        if weights.keys() != theory.linear.shapes.keys():
            raise ArtifactError(f"{point.manifest.path} has other parameters than {student}. Run the workflow again.")
        update = flat({name: weights[name] for name in theory.linear.shapes}) - theory.linear.origin
        rows[PATH].append({"step": point.step, **theory.against_path(update)})
        rows[GRADIENT] += [{"step": point.step, **row} for row in theory.inside_directions(update)]
        progress.update(number, cosine=rows[PATH][-1]["cosine"])
    for name, table in rows.items():
        with atomic_path(out.with_name(name)) as temporary:
            pd.DataFrame(table).to_parquet(temporary, index=False)
    last = rows[PATH][-1]
    parents = {"linearization": linearized.fingerprint} | {
        f"{name} {point.step}": parent for point in points for name, parent in point.parents.items()
    }
    write_manifest(
        out,
        kind=KIND,
        spec=spec.content,
        parents=parents,
        files={name: out.with_name(name) for name in rows},
        result={"steps": [point.step for point in points]},
        started=started,
    )
    say(f"done: cosine of the observed to the predicted update {last['cosine']:.3f} at step {last['step']}")


class LocalTheory:
    """What the linearization of a student says about updates d = theta - theta_0 [P]."""

    def __init__(
        self, linear: LinearizedModel, teacher_logits: torch.Tensor, tensors: Weights, facts: dict[str, Any]
    ) -> None:
        self.linear, self.teacher_logits, self.facts = linear, teacher_logits, facts
        self.b = tensors["b"].to(linear.origin)
        diagonal, off_diagonal = (tensors[name].numpy() for name in ("diagonal", "off_diagonal"))
        self.krylov = Krylov(tensors["basis"].to(linear.origin), diagonal, off_diagonal, facts["gradient_norm"])

    def against_path(self, update: torch.Tensor) -> dict[str, float]:
        """An observed update against the point of the predicted path that is as far from theta_0.

        Training steps and the path's are not comparable (AdamW, at its learning rate, against gradient descent at
        0.1 / l_1), hence equal lengths. Reverse KLs are in nats per token: true ones, and those of the quadratic.
        """
        length = float(torch.linalg.vector_norm(update, dtype=torch.float64))
        start = self.facts["quadratic_reverse_kl"]
        row = {
            "observed_norm": length,
            "cosine_to_gradient": cosine(update, self.b),
            "cosine_to_sign": cosine(update, self.b.sign()),
            "krylov_share": self._share_in_krylov_space(update),
            "reverse_kl": self.linear.reverse_kl(self.linear.origin + update, self.teacher_logits),
            "quadratic_reverse_kl": start + quadratic_change(self.linear.gauss_newton_product(update), self.b, update),
        }
        ritz, rate = self.krylov.ritz(), RATE / self.facts["largest_eigenvalue"]
        steps = steps_of_length(ritz, rate, length)
        missing = dict.fromkeys(("cosine", "predicted_change", "predicted_reverse_kl"), math.nan)
        if math.isinf(steps):
            return {**row, "gradient_steps": math.nan, **missing, "predicted_quadratic_reverse_kl": math.nan}
        coordinates = descent_coordinates(ritz, rate, steps)
        predicted = self.krylov.vector(coordinates)
        shorter = self.krylov.shortened(len(coordinates) * 3 // 4)
        before = shorter.vector(descent_coordinates(shorter.ritz(), rate, steps))
        return {
            **row,
            "gradient_steps": steps,
            "cosine": cosine(update, predicted),
            "predicted_change": float((predicted - before).norm() / predicted.norm()) if length else math.nan,
            "predicted_reverse_kl": self.linear.reverse_kl(self.linear.origin + predicted, self.teacher_logits),
            "predicted_quadratic_reverse_kl": start + quadratic_change_in_basis(self.krylov, coordinates),
        }

    def _share_in_krylov_space(self, update: torch.Tensor) -> float:
        """The share of the update's squared length that any path predicted from b could explain."""
        inside = float((self.krylov.basis @ update).double().square().sum())
        total = float(update.double().square().sum())
        return inside / total if total else math.nan

    def inside_directions(self, update: torch.Tensor) -> Iterator[dict[str, Any]]:
        """The share of b inside the leading singular directions of the update of each attention and MLP matrix."""
        gradients = unflattened(self.b, self.linear.shapes)
        for name, delta in unflattened(update, self.linear.shapes).items():
            parameter = Parameter(name, tuple(delta.shape), *parameter_place(name))
            if not parameter.is_projection:
                continue
            counts = [count for count in DIRECTIONS if count <= min(delta.shape)]
            _, found = decompose(delta, counts[-1])
            for count in counts:
                left, right = (torch.from_numpy(side[:, :count].copy()).to(delta) for side in (found.left, found.right))
                yield {
                    "parameter": name,
                    "layer": parameter.layer,
                    "module": parameter.module,
                    "directions": count,
                    "share": share_in_directions(gradients[name], left, right),
                    "random_share": count**2 / delta.numel(),
                }


def _points(states: Sequence[Path], decisions: Sequence[Path]) -> list[Point]:
    """The points of a run in order, each state with the decision at it."""
    decided = {read_manifest(path, "decision").parents["state"]: path for path in decisions}
    found = [Point.open(path, decided.get(read_manifest(path).fingerprint)) for path in states]
    return sorted(found, key=lambda point: point.step)
