"""Settings of interventions."""

from __future__ import annotations

SETTINGS = {
    "interventions": ["path", "equal_norm", "embeddings", "window", "reconstruction", "norm_scaling"],
    "equal_norm": {"fractions": [0, 0.3, 1]},
    "window": {"width": 0.5, "stride": 1, "parts": ["attention", "mlp", "layer"]},
    "reconstruction": {"top": [0, 10, 100], "bottom": [0, 90, 100], "norm": "own"},
    "norm_scaling": {"progress": 0.1, "betas": [0, 0.5, 1]},
}
