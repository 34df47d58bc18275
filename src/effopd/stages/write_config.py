"""The configuration as it was understood, with all defaults."""

from __future__ import annotations

from pathlib import Path

from effopd.artifacts.manifests import write_text
from effopd.config.files import as_yaml
from effopd.specs.reports import WriteConfig

HEADER = "# The configuration with all defaults, as it was run (less the runtime section: no result depends on it).\n"


def write_config(spec: WriteConfig, out: Path) -> None:
    """Write spec.config as YAML."""
    write_text(out, HEADER + as_yaml(spec.config))
