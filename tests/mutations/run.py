"""Mutation testing of the core: `python tests/mutations/run.py [MODULE ...]` (docs/mutation_testing.md).

Each mutant of a module is judged by that module's own tests in a process of its own, forked from one that has imported
what is slow to import; the files of the project are never changed. Prints the mutants that no test notices, but for
those that equivalent.yaml explains, and ends with status 1 if there are any. by_hand.yaml has faults that no operator
makes.
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
EQUIVALENT, BY_HAND = (
    yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text()) for name in ("equivalent", "by_hand")
)
MODULES = {  # the test files that are to notice, or single tests of them, the quickest to do so first
    "losses.divergences": ("divergences", "objective"),
    "distillation.objective": ("objective",),
    "reinforcement.losses": ("rl_losses",),
    "reinforcement.updates": ("updates", "reinforcement"),
    "extrapolation.search": ("search", "extrapolation"),
    "extrapolation.candidates": ("extrapolation", "driver"),
    "extrapolation.schedule": ("search", "extrapolation"),
    "extrapolation.gate": ("gate", "triggers"),
    "extrapolation.modules": ("modules", "every_step"),
    "extrapolation.driver": ("driver", "gate::test_a_decision_holds_what_was_tried_in_order_and_what_was_accepted"),
    "extrapolation.predictors": ("predictors",),
    "teachers.scoring": ("scoring",),
    "evaluation.measure": ("measure",),
    "tasks.splits": (
        "sources::test_no_problem_of_a_held_out_split_is_trained_on_though_its_limit_leaves_it_out",
        "sources::test_shares_part_the_hashes_from_the_first_on_and_their_ends_belong_to_the_next",
        "sources",
        "task_table",
    ),
    "evaluation.statistics": ("statistics", "tables", "comparison"),
    "evaluation.comparison": ("comparison",),
    "dynamics.variants": ("variants",),
}
OPTIONS = ("-x", "-q", "-m", "not slow", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:unraisableexception")
Job = tuple[str, Sequence[str]]  # the source of a module, and the tests to run on it
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
    sys.path[:0] = [str(ROOT / "tests/helpers")]
    for name in ("sklearn.cross_decomposition", "scipy.stats", "transformers.models.qwen3.modeling_qwen3"):
        importlib.import_module(name)
    importlib.import_module("effopd.stages.segments")
    importlib.import_module("effopd.training.deepspeed_compat").import_deepspeed(on_cpu=True)
    for name in [name for name in sys.modules if name.split(".")[0] == "effopd"]:
        del sys.modules[name]
    settings.register_profile("mutations", derandomize=True, database=None, deadline=None, max_examples=30)
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
        sys.meta_path.insert(0, Replaced(f"effopd.{module}", path_of(module), source))
        status = int(pytest.main([*OPTIONS, *map(test_id, tests)]))
    finally:
        os._exit(status)


def outcomes(module: str, jobs: Sequence[Job], limit: float, processes: int) -> Iterator[tuple[int, int]]:
    """(position, exit status of the tests) of each job, as they end; 1 for those that take too long."""
    waiting, running = list(enumerate(jobs))[::-1], dict[int, tuple[int, float]]()
    while waiting or running:
        while waiting and len(running) < processes:
            position, (source, tests) = waiting.pop()
            running[start_tests(module, source, tests)] = position, time.monotonic() + limit
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


def judge(module: str, processes: int, only_by_hand: bool) -> int:
    """Print what is wrong with a module's tests. Returns how many mutants survive unexplained."""
    source = path_of(module).read_text()
    own = [] if only_by_hand or module not in MODULES else mutants_of(source)
    explained = {(entry["was"], entry["now"]): entry["why"] for entry in EQUIVALENT.get(module, [])}
    gone = explained.keys() - {mutant.change for mutant in own} if own else set()
    tried = [(by_hand(source, fault), fault["tests"]) for fault in BY_HAND.get(module, [])]
    tried += [(mutant, MODULES[module]) for mutant in own if mutant.change not in explained]
    started = time.monotonic()
    everything = list(dict.fromkeys(test for _, tests in tried for test in tests))
    ((_, status),) = outcomes(module, [(source, everything)], 3600, 1)
    if status:
        sys.exit(f"error: the tests of effopd.{module} fail as it is (pytest's status {status}).")
    seconds, survive = time.monotonic() - started, 0
    jobs = [(mutant.source, tests) for mutant, tests in tried]
    for position, status in outcomes(module, jobs, 5 * seconds + SLACK_SECONDS, processes):
        if status == 0:
            survive += 1
            mutant = tried[position][0]
            say(f"{module}, line {mutant.line} survives:\n  - {mutant.was}\n  + {mutant.now}")
    for was, now in sorted(gone):
        say(f"{module}: equivalent.yaml explains what is no mutant any more:\n  - {was}\n  + {now}")
    counts = f"{len(tried) - survive} noticed, {survive} survive, {len(explained)} equivalent"
    say(f"{module}: {counts} ({time.monotonic() - started:.0f} s)")
    return survive + len(gone)


def by_hand(source: str, fault: Mapping[str, Any]) -> Mutant:
    """A fault of by_hand.yaml. Ends the program if the source has no place for it, or several."""
    if source.count(fault["was"]) != 1:
        sys.exit(
            f"error: by_hand.yaml: {fault['name']!r} finds its place {source.count(fault['was'])} times, not once."
        )
    line = source[: source.index(fault["was"])].count("\n") + 1
    return Mutant(line, fault["was"], fault["now"], source.replace(fault["was"], fault["now"]))


def test_id(test: str) -> str:
    """What pytest calls the tests of a file, `losses`, or one of them, `losses::test_x`."""
    file, *function = test.split("::")
    return "::".join([str(next(ROOT.glob(f"tests/*/test_{file}.py"))), *function])


def path_of(module: str) -> Path:
    return ROOT / f"src/effopd/{module.replace('.', '/')}.py"


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    modules = list(dict.fromkeys([*MODULES, *BY_HAND]))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"default: all of {', '.join(modules)}")
    parser.add_argument("--by-hand", action="store_true", help="only the faults of by_hand.yaml")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many mutants at a time")
    arguments = parser.parse_args()
    chosen = arguments.modules or (list(BY_HAND) if arguments.by_hand else modules)
    if unknown := set(chosen) - set(modules):
        parser.error(f"no such module: {', '.join(sorted(unknown))}")
    preload()
    return int(sum(judge(module, arguments.processes, arguments.by_hand) for module in chosen) > 0)


if __name__ == "__main__":
    sys.exit(main())
