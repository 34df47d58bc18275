"""`python -m effopd` and the `effopd` command."""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> None:
    """Run a command, in a warm process where the workflow offers one (before importing anything slow)."""
    _open_standard_files()
    arguments = sys.argv[1:]
    if launcher := os.environ.pop("EFFOPD_LAUNCHER", ""):  # a rank: its launcher's end gives its GPUs to others
        from effopd.common.processes import die_with_parent

        die_with_parent(int(launcher))
    if address := os.environ.get("EFFOPD_WARM"):
        from effopd.workflow.fork_server import run_warm

        status = run_warm(address, arguments)
        if status is not None:
            sys.exit(status)
    from effopd.cli.commands import exit_now, run_verb

    exit_now(run_verb(arguments))


def _open_standard_files() -> None:
    """Open the null device for standard files that are closed, or the next file opened would get what is said."""
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):  # it is the lowest free number
                os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


if __name__ == "__main__":
    main()
