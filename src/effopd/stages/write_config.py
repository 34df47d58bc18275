"""The configuration as it was understood, with all defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from effopd.artifacts.manifests import write_text

HEADER = "# The configuration with all defaults, as it was run (less the runtime section: no result depends on it).\n"


def write_config(spec: dict[str, Any], out: Path) -> None:
    """Write spec["config"] as YAML."""
    write_text(out, HEADER + yaml.safe_dump(spec["config"], sort_keys=False))
