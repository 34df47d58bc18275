"""`python -m effopd` and the `effopd` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run a verb, in a warm process where the workflow offers one (before importing anything slow)."""
    arguments = sys.argv[1:]
    if launcher := os.environ.pop("EFFOPD_LAUNCHER", ""):  # a rank: its launcher's end gives its GPUs to others
        from effopd.runtime.processes import die_with_parent

        die_with_parent(int(launcher))
    if address := os.environ.get("EFFOPD_WARM"):
        from effopd.runtime.warm import run_warm

        status = run_warm(address, arguments)
        if status is not None:
            sys.exit(status)
    from effopd.cli import exit_now, run_verb

    exit_now(run_verb(arguments))


if __name__ == "__main__":
    main()
