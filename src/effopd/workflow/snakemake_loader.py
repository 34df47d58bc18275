"""Configuration files on Snakemake's command line: Snakemake reads them before any line of the Snakefile runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from effopd.common.errors import ConfigError
from effopd.config.files import read_file


def read_strictly_what_snakemake_cannot() -> None:
    """Have Snakemake's reader ask ours about files that it refuses.

    It names neither the file nor the line, and an overlay with no key is an error to it. What the workflow uses is read
    by ours in any case (workflow/rules/common.smk).
    """
    from snakemake.common import configfile
    from snakemake.settings import types
    from snakemake_interface_common.exceptions import WorkflowError

    load = configfile.load_configfile
    if getattr(load, "strict", False):
        return

    def load_configfile(configpath: Any) -> dict[str, Any]:
        try:
            loaded: dict[str, Any] = load(configpath)
            return loaded
        except Exception:
            try:
                return read_file(Path(configpath)).values
            except ConfigError as error:
                raise WorkflowError(str(error)) from None

    load_configfile.strict = True  # type: ignore[attr-defined]
    configfile.load_configfile = types.load_configfile = load_configfile
