"""The configuration as it was understood, with all defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from effopd.artifacts.manifests import write_text

HEADER = "# The configuration with all defaults, as it was run (less the runtime section: no result depends on it).\n"


class _Dumper(yaml.SafeDumper):
    """Writes the dictionaries of specs as others."""


_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration as YAML, its keys in their order."""
    return str(yaml.dump(config, Dumper=_Dumper, sort_keys=False))


def write_config(spec: dict[str, Any], out: Path) -> None:
    """Write spec["config"] as YAML."""
    write_text(out, HEADER + as_yaml(spec["config"]))
