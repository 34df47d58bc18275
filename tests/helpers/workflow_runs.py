"""Runs the real workflow on a tiny experiment, and compares what two results folders hold."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load

from preloaded import Process, starter

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).parents[1] / "end_to_end/tiny.yaml"


def _without_times(columns: list[str]) -> list[str]:
    """Those that hold no wall times; they must be equal."""
    return [name for name in columns if "seconds" not in name]


# What a workflow has before it trains students: with a copy of it, another that differs in them alone starts there.
BEFORE_STUDENTS = ("results/data", "results/models", "results/evaluation/models", ".snakemake")


@dataclass
class Workflow:
    """The workflow in a folder of its own, with the tiny experiment's configuration."""

    folder: Path
    config: dict[str, Any] = field(default_factory=lambda: yaml.safe_load(TINY.read_text()))
    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ("--cores", "2")

    def command(self, *arguments: str) -> list[str]:
        path, text = self.folder / "config/config.yaml", yaml.safe_dump(self.config)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text() != text:  # somebody else may be reading it
            path.write_text(text)
        return [
            str(Path(sys.executable).with_name("snakemake")),
            *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(self.folder)),
            *self.options,
            *arguments,
        ]

    def start(self, *arguments: str) -> Process:
        """Start it in a session of its own, so that a kill hits nothing else."""
        return starter().start(self.command(*arguments), self.folder, {**os.environ, **self.environment})

    @contextmanager
    def started(self, *arguments: str) -> Iterator[Process]:
        """Start it for a block that watches it, and kill it if the block gives up."""
        process = self.start(*arguments)
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def run(self, *arguments: str, status: int = 0, timeout: float = 400) -> str:
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == status, output
        return output

    def planned(self, *arguments: str) -> dict[str, int]:
        """The jobs that a run would do now, by rule."""
        output = self.run("--dry-run", *arguments)
        line = next((line for line in output.splitlines() if " jobs: " in line), None)
        if line is None:
            assert "nothing to be done" in output, output
            return {}
        counts = (entry.split(" ") for entry in line.split(" jobs: ")[1].split(", "))
        return {rule: int(count) for count, rule in counts}

    def copy(self, folder: Path, *parts: str) -> Workflow:
        """A copy of it in a folder, records included; or of parts of it only."""
        for part in parts or (".",):
            (folder / part).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", f"{self.folder / part}/.", str(folder / part)], check=True)
        return replace(self, folder=folder, config=copy.deepcopy(self.config))

    def path(self, name: str) -> Path:
        return self.folder / "results" / name

    def contents(self) -> dict[str, str]:
        """A digest of every artifact, wall times and host facts left out."""
        return {
            str(path.relative_to(self.folder)): _digest(path)
            for path in sorted(self.folder.glob("results/**/*"))
            if path.is_file() and not path.name.startswith(".") and path.suffix != ".html"
            and "seconds" not in path.name and not path.match("figures/*")
        }  # fmt: skip


def environments(folder: Path) -> dict[int, dict[str, str]]:
    """The environments, by process, of the jobs in a folder that work with models."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"effopd.workflow.launch" in words:  # not yet the job
                continue
            if b"--teacher" in words and (entry / "cwd").resolve() == folder.resolve():
                variables = (entry / "environ").read_text().split("\0")
                found[int(entry.name)] = dict(variable.split("=", 1) for variable in variables if "=" in variable)
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
    return found


def _digest(path: Path) -> str:
    return _digest_of(path.suffix, path.read_bytes())


@functools.lru_cache(maxsize=2000)
def _digest_of(suffix: str, written: bytes) -> str:
    """A digest of what a file says; of tens of copies of an experiment most files are the same."""
    content: Any = written
    if suffix == ".json":
        entry = json.loads(written)
        if isinstance(entry, dict):
            entry.pop("recorded", None)
        content = json.dumps(entry, sort_keys=True).encode()
    elif suffix == ".safetensors":
        try:
            tensors = load(written)
        except SafetensorError:  # torn on purpose
            return hashlib.sha256(written).hexdigest()
        content = b"".join(name.encode() + tensors[name].tobytes() for name in sorted(tensors))
    elif suffix == ".parquet":
        table = pq.read_table(io.BytesIO(written))
        content = repr(table.select(_without_times(table.column_names)).to_pydict()).encode()
    elif suffix == ".csv":
        import pandas as pd

        table = pd.read_csv(io.BytesIO(written))
        content = table[_without_times(list(table))].to_csv().encode()
    return hashlib.sha256(content).hexdigest()


def effopd(workflow: Workflow, *arguments: str, status: int = 0) -> str:
    """Run a verb in the workflow's folder and return what it says."""
    command = [str(Path(sys.executable).with_name("effopd")), *arguments]
    done = subprocess.run(command, cwd=workflow.folder, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == status, output
    assert "Traceback" not in output
    return output


def kill_and_resume(workflow: Workflow, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the last segment of a finished run (steps 3 and 4, seed 0) again: killed after one step, then to the end."""
    from effopd.distillation import step as distillation
    from effopd.specs.read import read_spec
    from effopd.stages import segments

    out = workflow.path(f"runs/{run}/seed0/state/4/state.json")
    spec = read_spec("train_segment", json.loads(out.read_text())["spec"])
    update, steps = distillation.update_policy, list[int]()

    def one_update_then_a_kill(trainer, rollouts, scores, training, step, pad_id, teacher_head):
        if steps == [3]:
            raise KeyboardInterrupt
        steps.append(step)
        return update(trainer, rollouts, scores, training, step, pad_id, teacher_head)

    def train() -> None:
        segments.train_segment(
            spec,
            student=workflow.path("models/base/manifest.json"),
            teacher=workflow.path("models/teacher/manifest.json"),
            prompts=workflow.path("data/arithmetic/prompts-base/manifest.json"),
            state=workflow.path(f"runs/{run}/seed0/state/2/state.json"),
            decision=None,
            out=out,
            run_folder=out.parents[2],
            device=torch.device("cpu"),
        )

    out.unlink()
    monkeypatch.setattr(segments, "RESUME_EVERY_SECONDS", -1.0)
    monkeypatch.setattr(distillation, "update_policy", one_update_then_a_kill)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert out.with_name("resume.safetensors").is_file()
    steps.clear()
    train()
    assert steps == [4]
