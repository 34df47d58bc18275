"""Checks of what models compute: finite weights, and log-probabilities that agree wherever they must.

Log-probabilities are lists of N float32 arrays, one value a completion token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from effopd.preflight.findings import Finding, failed, passed, warned

# Largest difference of a token's log-prob between engine and trainer, by the precision that the models compute in;
# low precision is judged by the mean, for single tokens of small probability differ by far more.
LARGEST_DIFFERENCE = 1e-3
LARGEST_MEAN_DIFFERENCE = 0.05
ROUNDING = 1e-5  # nats: what float32 may leave of a difference that is 0
LARGEST_START_KL = 3.0  # nats a token; a student of the teacher's family starts well below 1

Logprobs = Sequence[np.ndarray]


def check_weights(check: str, role: str, weights: Mapping[str, torch.Tensor]) -> Finding:
    """All parameters of a model are finite numbers."""
    bad = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in weights.items()}
    bad = {name: count for name, count in bad.items() if count}
    total = sum(tensor.numel() for tensor in weights.values())
    if bad:
        name, count = next(iter(bad.items()))
        return failed(
            check,
            f"{sum(bad.values())} of the {role}'s {total:,} parameters are not finite ({count} in {name})",
            "One of them turns every log-probability into NaN.",
            "Fetch or train the model again.",
        )
    return passed(check, f"{total:,} finite parameters")


def check_engine(check: str, engine: Logprobs, trainer: Logprobs, precision: str) -> Finding:
    """The engine's log-probs of what it sampled are the trainer's (`precision` float32 or bfloat16)."""
    differences = np.abs(_flat(engine) - _flat(trainer))
    largest, mean = float(differences.max()), float(differences.mean())
    measured = f"log-probs of {len(differences)} tokens differ by {mean:.1e} on average, {largest:.1e} at most"
    exact = precision == "float32"
    value, limit = (largest, LARGEST_DIFFERENCE) if exact else (mean, LARGEST_MEAN_DIFFERENCE)
    if not value <= limit:  # also if it is NaN
        return failed(
            check,
            f"{measured} (allowed in {precision}: {limit:g} {'at most' if exact else 'on average'})",
            "Training would follow other probabilities than those that the rollouts were drawn from.",
            "Compute both in one precision, and look for masks, positions or weights that the engine has otherwise.",
        )
    return passed(check, measured)


def check_endpoint(check: str, server: Logprobs, folder: Logprobs, dtype: str) -> Finding:
    """What scores rollouts, a server, says what the teacher's folder does (held in `dtype`, float32 or bfloat16)."""
    mean = float(np.abs(_flat(server) - _flat(folder)).mean())
    limit = LARGEST_DIFFERENCE if dtype == "float32" else LARGEST_MEAN_DIFFERENCE
    measured = f"log-probs of the server and of the folder differ by {mean:.1e} on average"
    if not mean <= limit:
        return failed(
            check,
            f"{measured} (allowed in {dtype}: {limit:g})",
            "The student would learn from another teacher than the one that it is compared with.",
            "Serve the folder in `models` as it is: its weights, its precision, prefix caching off.",
        )
    return passed(check, measured)


def check_determinism(check: str, first: Logprobs, again: Logprobs) -> Finding:
    """The same rollouts, scored twice, get the same bits."""
    one, two = _flat(first), _flat(again)
    changed = int((one.view(np.int32) != two.view(np.int32)).sum())
    if changed:
        return failed(
            check,
            f"{changed} of {len(one)} log-probs came out otherwise the second time (by up to "
            f"{np.abs(one - two).max():.1e})",
            "No result could be made again, and a resumed run would differ from an undisturbed one.",
            "Turn prefix caching off and deterministic kernels on, or accept it.",
        )
    return passed(check, f"{len(one)} log-probs, the same bits twice")


def check_identity(check: str, divergences: Logprobs) -> Finding:
    """The reverse KL of the teacher to itself is 0 at every token."""
    values = _flat(divergences)
    largest = float(np.abs(values).max())
    if not largest <= ROUNDING:
        return failed(
            check,
            f"the KL of the teacher to itself is up to {largest:.1e} nats",
            "A loss that is not 0 where there is nothing to learn pulls the student somewhere else.",
            "Look for log-probs that are shifted by a token, padded, or not finite.",
        )
    return passed(check, f"KL at most {largest:.1g} nats at {len(values)} tokens")


def check_start(check: str, student: Logprobs, teacher: Logprobs) -> Finding:
    """The sampled reverse KL at the start, mean of log pi_student - log pi_teacher, is finite and not 0 throughout."""
    differences = (_flat(student) - _flat(teacher)).astype(np.float64)
    mean = float(differences.mean())
    if not np.isfinite(differences).all():
        return failed(
            check,
            f"{int((~np.isfinite(differences)).sum())} of {len(differences)} log-prob ratios are not finite",
            "One of them makes the loss, and with it all weights, NaN.",
            "Look at `weights` and `tokenizer`, and for tokens to which the teacher gives probability 0.",
        )
    if float(np.abs(differences).max()) <= ROUNDING:
        return failed(
            check,
            f"student and teacher agree to {np.abs(differences).max():.0e} at all {len(differences)} tokens",
            "There is nothing to learn: they are the same model.",
            "Name another model as `training.teacher`.",
        )
    if mean > LARGEST_START_KL:
        return warned(
            check,
            f"reverse KL of {mean:.2f} nats a token",
            "A student of the teacher's family starts well below 1: a wrong template or teacher looks like this.",
            "Read a few rollouts, and look up what the teacher was trained from.",
        )
    return passed(check, f"reverse KL of {mean:.3f} nats a token (sampled, {len(differences)} tokens)")


def _flat(rows: Logprobs) -> np.ndarray:
    return np.concatenate(list(rows)).astype(np.float32)
