"""Settings of interventions."""

from __future__ import annotations

from typing import Any

from effopd.specs.dynamics import InterventionSettings
from effopd.specs.read import read_section

SETTINGS = {
    "interventions": ["path", "equal_norm", "embeddings", "window", "reconstruction", "norm_scaling"],
    "equal_norm": {"fractions": [0, 0.3, 1]},
    "window": {"width": 0.5, "stride": 1, "parts": ["attention", "mlp", "layer"]},
    "reconstruction": {"top": [0, 10, 100], "bottom": [0, 90, 100], "norm": "own"},
    "norm_scaling": {"progress": 0.1, "betas": [0, 0.5, 1]},
}


def section_of(**changes: Any) -> dict[str, Any]:
    """SETTINGS with these keys, without the options of what is not chosen, as a spec holds them."""
    section = {"problems": 1, "samples": 1, **SETTINGS, **changes}
    return {
        k: value
        for k, value in section.items()
        if k not in SETTINGS or k in ("interventions", *section["interventions"])
    }


def intervention_settings(**changes: Any) -> InterventionSettings:
    """The same as `variants` takes it."""
    found: InterventionSettings = read_section(InterventionSettings, section_of(**changes), "`dynamics`")
    return found
