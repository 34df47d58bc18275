"""The local theory at a student's first weights (paper section 3, item 10): what all its runs to a teacher share."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from effopd.artifacts.manifests import atomic_path, read_manifest, write_manifest
from effopd.common.progress import Progress, say
from effopd.common.randomness import generator, seed_of
from effopd.data.prompts import load_tokens
from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.dynamics.krylov import RitzPairs, lanczos
from effopd.dynamics.linearized import LinearizedModel
from effopd.dynamics.local_theory import cosine, logit_residual, weighted_residual
from effopd.dynamics.spectra import effective_rank, effective_rank_squared, spectral_to_frobenius, top_norm_ratio
from effopd.engines.base import longest_context
from effopd.engines.transformers_engine import TransformersEngine
from effopd.models.lm_head import completion_logits
from effopd.models.models import load_model, load_tokenizer, save_tensors, special_ids
from effopd.specs.dynamics import LinearizeStudent
from effopd.specs.engines import Sampling

KIND = "linearization"
ROLLOUTS, TENSORS = "rollouts.parquet", "krylov.safetensors"
METRICS = {
    "spectral_to_frobenius": spectral_to_frobenius,
    "effective_rank": effective_rank,
    "effective_rank_squared": effective_rank_squared,
    "top1pct_norm_ratio": top_norm_ratio,
}


def linearize_student(
    spec: LinearizeStudent, *, student: Path, teacher: Path, prompts: Path, out: Path, device: torch.device
) -> None:
    """Residuals, b and the leading eigenpairs of A, on the student's own completions of the first held-out problems.

    Writes beside the manifest `out` these completions, b with its Krylov basis, and two tables: `residuals` (a row a
    kind of residual and singular value) and `eigenspace` (a row a starting vector and eigenpair; the random start is a
    control, and finds the same eigenvalues if they have converged).
    """
    started = time.time()
    settings, size = spec.local_theory, spec.batch_size
    manifests = {
        "student": read_manifest(student, "model"),
        "teacher": read_manifest(teacher, "model"),
        "prompts": read_manifest(prompts, "prompts"),
    }
    model, tokenizer = load_model(student.parent, device), load_tokenizer(student.parent)
    _, pad_id = special_ids(tokenizer)
    tokens = load_tokens(manifests["prompts"], "test")[: settings.completions]
    seeds = [seed_of(spec.seed, "local theory", position) for position in range(len(tokens))]
    context = longest_context(tokens, spec.max_new_tokens)
    engine = TransformersEngine.of(model, tokenizer, batch_size=size, context=context, dtype="float32")
    rollouts = engine.generate(tokens, seeds, Sampling(1.0, spec.max_new_tokens))  # b is a mean over pi_theta_0
    linear = LinearizedModel(model, rollouts, pad_id=pad_id, batch_size=size)
    student_logits = linear.logits(linear.origin)
    teacher_logits = logits_of(load_model(teacher.parent, device), rollouts, pad_id, size)
    residuals = {
        "logits": logit_residual(student_logits, teacher_logits),
        "weighted": weighted_residual(student_logits, teacher_logits),
    }
    spectra = {kind: torch.linalg.svdvals(residual).cpu().numpy() for kind, residual in residuals.items()}
    b = linear.descent_direction(teacher_logits)
    random = torch.from_numpy(generator("local theory, control").standard_normal(len(b), np.float32)).to(device)
    progress, done = Progress("products with A", 2 * settings.iterations), itertools.count(1)

    def multiply(vector: torch.Tensor) -> torch.Tensor:
        product = linear.gauss_newton_product(vector)
        progress.update(next(done), curvature=float(vector @ product))
        return product

    krylov = lanczos(multiply, b, settings.iterations)
    control = lanczos(multiply, random, settings.iterations)
    tables = {
        "residuals.parquet": pd.concat([_residual_rows(kind, values) for kind, values in spectra.items()]),
        "eigenspace.parquet": pd.concat([_eigen_rows("b", krylov.ritz()), _eigen_rows("random", control.ritz())]),
    }
    for name, table in tables.items():
        with atomic_path(out.with_name(name)) as temporary:
            table.to_parquet(temporary, index=False)
    rollouts.write(out.with_name(ROLLOUTS))
    small = {"diagonal": torch.from_numpy(krylov.diagonal), "off_diagonal": torch.from_numpy(krylov.off_diagonal)}
    save_tensors(out.with_name(TENSORS), {"b": b.cpu(), "basis": krylov.basis.cpu(), **small})
    result = {
        "completions": len(rollouts),
        "contexts": linear.contexts,
        "vocabulary": student_logits.shape[1],
        "parameters": len(b),
        "reverse_kl": linear.reverse_kl(linear.origin, teacher_logits),
        "quadratic_reverse_kl": float(residuals["weighted"].square().sum()) / 2 / linear.contexts,
        "gradient_norm": krylov.length,
        "sign_cosine": cosine(b, b.sign()),
        "largest_eigenvalue": float(krylov.ritz().values[0]),
        "residuals": {
            kind: {name: metric(values) for name, metric in METRICS.items()} for kind, values in spectra.items()
        },
    }
    write_manifest(
        out,
        kind=KIND,
        spec=spec.content,
        parents={name: manifest.fingerprint for name, manifest in manifests.items()},
        files={name: out.with_name(name) for name in (*tables, ROLLOUTS, TENSORS)},
        result=result,
        started=started,
    )
    say(f"done: {linear.contexts} contexts, largest eigenvalue {result['largest_eigenvalue']:.4g}")


def logits_of(model: PreTrainedModel, rollouts: Rollouts, pad_id: int, batch_size: int) -> torch.Tensor:
    """A model's logits at all completion tokens [M, V]."""
    batches = [PaddedBatch.of(part, pad_id, model.device) for part in rollouts.batches(batch_size)]
    return torch.cat([completion_logits(model, batch)(slice(None)) for batch in batches])


def _residual_rows(kind: str, singular_values: np.ndarray) -> pd.DataFrame:
    energies = np.square(singular_values)
    return pd.DataFrame(
        {
            "kind": kind,
            "index": np.arange(1, len(energies) + 1),
            "singular_value": singular_values,
            "cumulative_share": np.cumsum(energies) / energies.sum(),
        }
    )


def _eigen_rows(start: str, ritz: RitzPairs) -> pd.DataFrame:
    energies = np.square(ritz.parts)
    return pd.DataFrame(
        {
            "start": start,
            "index": np.arange(1, len(energies) + 1),
            "eigenvalue": ritz.values,
            "relative_residual": ritz.relative_residuals,
            "share": energies / energies.sum(),
            "cumulative_share": ritz.cumulative_shares,
        }
    )
