"""Mutation testing of the core: `python tests/mutations/run.py [MODULE ...]` (docs/mutation_testing.md).

Each mutant of a module is judged by that module's own tests in a process of its own, forked from one that has imported
what is slow to import; the files of the project are never changed. Prints the mutants that no test notices, but for
those that equivalent.yaml explains, and ends with status 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

import pytest
import yaml
from hypothesis import settings
from mutants import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.yaml")
MODULES = {  # the files of tests/unit that are to notice, the quickest to do so first
    "losses": ("losses", "objective"),
    "objective": ("objective",),
    "reinforcement.losses": ("rl_losses",),
    "reinforcement.updates": ("updates", "reinforcement"),
    "extrapolation.search": ("extrapolation",),
    "extrapolation.candidates": ("extrapolation",),
    "extrapolation.schedule": ("extrapolation",),
    "extrapolation.gate": ("gate", "triggers"),
    "extrapolation.modules": ("modules", "step_extrapolation"),
    "extrapolation.predictors": ("predictors",),
    "scoring": ("scoring",),
    "evaluation": ("evaluation",),
    "tasks.splits": ("sources", "task_table"),
    "statistics": ("statistics", "tables", "comparison"),
    "comparison": ("comparison",),
    "dynamics.variants": ("variants",),
}
OPTIONS = ("-x", "-q", "-m", "not slow", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:unraisableexception")
SLACK_SECONDS = 30.0  # how much longer than five times its tests a mutant may take


class Replaced(importlib.abc.MetaPathFinder):
    """Imports one module from another source."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        self.module, self.path, self.source = module, path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        loader = SourceFileLoader(name, str(self.path))
        loader.get_code = lambda _: compile(self.source, str(self.path), "exec")  # type: ignore[method-assign]
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


def preload() -> None:
    """Import what all tests need and is no part of the project."""
    sys.path[:0] = [str(ROOT / "tests/unit")]
    for name in ("sklearn.cross_decomposition", "scipy.stats", "transformers.models.qwen3.modeling_qwen3"):
        importlib.import_module(name)
    importlib.import_module("effopd.stages.segments")
    importlib.import_module("effopd.trainer").import_deepspeed(on_cpu=True)
    for name in [name for name in sys.modules if name.split(".")[0] == "effopd"]:
        del sys.modules[name]
    settings.register_profile("mutations", derandomize=True, database=None, deadline=None)
    settings.load_profile("mutations")
    gc.freeze()  # nothing of this is garbage: no process need look


def start_tests(module: str, source: str, tests: Sequence[str]) -> int:
    """Run a module's tests on a source of it in a new process; returns its id."""
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    status = 1
    try:
        path = ROOT / f"src/effopd/{module.replace('.', '/')}.py"
        sys.meta_path.insert(0, Replaced(f"effopd.{module}", path, source))
        files = [str(ROOT / f"tests/unit/test_{test}.py") for test in tests]
        status = int(pytest.main([*OPTIONS, *files]))
    finally:
        os._exit(status)


def outcomes(module: str, sources: Sequence[str], limit: float, processes: int) -> Iterator[tuple[int, int]]:
    """(position, exit status of its tests) of each source, as they end; 1 for those that take too long."""
    waiting, running = list(enumerate(sources))[::-1], dict[int, tuple[int, float]]()
    while waiting or running:
        while waiting and len(running) < processes:
            position, source = waiting.pop()
            running[start_tests(module, source, MODULES[module])] = position, time.monotonic() + limit
        time.sleep(0.02)
        for process, (position, deadline) in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            late = not ended and time.monotonic() > deadline
            if late:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
            if ended or late:
                del running[process]
                yield position, 1 if late else os.waitstatus_to_exitcode(status)


def judge(module: str, explained: Mapping[tuple[str, str], str], processes: int) -> int:
    """Print what is wrong with a module's tests. Returns how many mutants survive unexplained."""
    source = (ROOT / f"src/effopd/{module.replace('.', '/')}.py").read_text()
    started = time.monotonic()
    ((_, status),) = outcomes(module, [source], 1800, 1)
    if status:
        sys.exit(f"error: the tests of effopd.{module} fail as it is (pytest's status {status}).")
    seconds = time.monotonic() - started
    mutants = mutants_of(source)
    gone = explained.keys() - {mutant.change for mutant in mutants}
    judged = [mutant for mutant in mutants if mutant.change not in explained]
    print(
        f"{module}: {len(mutants)} mutants, {len(mutants) - len(judged)} equivalent, tests {seconds:.0f} s", flush=True
    )
    survivors: list[Mutant] = []
    texts = [mutant.source for mutant in judged]
    for position, status in outcomes(module, texts, 5 * seconds + SLACK_SECONDS, processes):
        if status == 0:
            survivors.append(judged[position])
            print(
                f"  line {judged[position].line} survives\n    - {judged[position].was}\n    + {judged[position].now}",
                flush=True,
            )
    for was, now in sorted(gone):
        print(f"  equivalent.yaml explains what is no mutant any more:\n    - {was}\n    + {now}")
    print(
        f"  {len(judged) - len(survivors)} noticed, {len(survivors)} survive, {time.monotonic() - started:.0f} s",
        flush=True,
    )
    return len(survivors) + len(gone)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"default: all of {', '.join(MODULES)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many mutants at a time")
    arguments = parser.parse_args()
    if unknown := set(arguments.modules) - MODULES.keys():
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    known = yaml.safe_load(EQUIVALENT.read_text())
    preload()
    found = 0
    for module in arguments.modules or MODULES:
        explained = {(entry["was"], entry["now"]): entry["why"] for entry in known.get(module, [])}
        found += judge(module, explained, arguments.processes)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
