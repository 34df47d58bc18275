"""Overlay: extrapolate after every step."""

from __future__ import annotations

EVERY_STEP = {
    "extrapolation": {
        "triggers": "every_step",
        "search": "line_by_module",
        "accept_ties": False,
        "moments": "scaled",
        "gate": {"metric": "reverse_kl", "source": "rollouts"},
    }
}
