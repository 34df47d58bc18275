"""Which columns the tables of a results folder have, by the names of their files, and which of them hold words."""

from __future__ import annotations

from collections.abc import Iterable

_COSTS = ("generated_tokens", "scored_tokens", "flops", "seconds")
_OUTCOME = ("accuracy", "reverse_kl", "completion_length", "finished")
_AXES = ("step", *_COSTS)


def _ranges(names: Iterable[str]) -> tuple[str, ...]:
    """Values and the bounds of their intervals."""
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


def _means(keys: Iterable[str], values: Iterable[str]) -> tuple[str, ...]:
    """Of a table with one row per run and seed, and rows of means over seeds."""
    return ("run", "seed", *keys, *_ranges(values))


_OF_TASKS = (
    *_means(("task", "source", "step"), ("accuracy", "completion_length", "finished")),
    "problems",
    "completions",
)
COLUMNS: dict[str, tuple[str, ...]] = {
    "models": ("model", *_OUTCOME, "completions"),
    "evaluation": ("run", "seed", "step", *_OUTCOME, "completions", *_COSTS, "trained_tokens",
                   "gate_generated_tokens", "gate_flops", "gate_seconds"),
    "extrapolation": ("run", "seed", "step", "metric", "coefficient", "value", "deviation", "accepted", "selected",
                      "tie", "update_norm"),
    "speedup": ("run", "reference", "seed", "target_accuracy", "reached", *(f"first_{axis}" for axis in _AXES),
                *(f"{axis}_ratio" for axis in _AXES)),
    "comparison": (
        "run", "group", "reference", "seeds", "step", "accuracy", "reference_accuracy", "reached",
        "reverse_kl", "reference_reverse_kl", "reverse_kl_reached",
        *_ranges(f"{before}{axis}_ratio" for before in ("", "reverse_kl_") for axis in _AXES),
        *_ranges(f"difference_at_equal_{axis}" for axis in _AXES), *(f"ahead_at_equal_{axis}" for axis in _AXES),
        "area", "reference_area", *_ranges(["area_difference"]),
    ),
    "summary": ("run", "steps", "seeds", *_ranges(["accuracy", "reverse_kl"]), *_COSTS, "trained_tokens",
                "gate_token_share"),
    "sources": _OF_TASKS,
    "tasks": _OF_TASKS,
    "paper_claims": ("claim", "run", "paper_rl", "paper_opd", "rl", *_ranges(["value"]), "verdict"),
    "dynamics_spectra": _means(
        ("step", "module"),
        ("spectral_norm", "spectral_to_frobenius", "effective_rank", "effective_rank_squared", "top1pct_norm_ratio"),
    ),
    "dynamics_norms": _means(
        ("step", "module", "layer"), ("frobenius_norm", "base_norm", "relative_norm", "share")
    ),
    "dynamics_alignment": _means(
        ("step",), ("paired_cosine", "principal_cosine", "cosine_to_final", "explained_variance_ratio")
    ),
    "dynamics_interventions": _means(
        ("analysis", "variant", "step", "part", "amount", "layer", "first_layer", "last_layer"),
        ("norm", "relative_norm", *_OUTCOME, "accuracy_difference", "reverse_kl_difference", "recovered"),
    ),
    "dynamics_representation": _means(("step", "layer"), ("cosine",)),
    "local_eigenspace": ("student", "teacher", "start", "index", "eigenvalue", "relative_residual", "share",
                         "cumulative_share"),
    "local_residuals": ("student", "teacher", "kind", "index", "singular_value", "cumulative_share"),
    "local_gradient": _means(("step", "directions"), ("share", "random_share")),
    "local_path": _means(
        ("step",),
        ("observed_norm", "cosine_to_gradient", "cosine_to_sign", "krylov_share", "reverse_kl", "quadratic_reverse_kl",
         "gradient_steps", "cosine", "predicted_change", "predicted_reverse_kl", "predicted_quadratic_reverse_kl"),
    ),
}  # fmt: skip
# Columns that hold names which people choose: always text, whether they look like numbers, "NA" or a formula.
NAMES = ("run", "reference", "group", "model", "source", "task", "student", "teacher")
# Those whose cells may be words besides. What is in neither is numbers, or truth values.
WORDS = ("seed", "layer", "module", "metric", "analysis", "variant", "part", "amount", "kind", "start", "directions",
         "claim", "paper_rl", "paper_opd", "verdict")  # fmt: skip
