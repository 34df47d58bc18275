"""Every weight-only analysis of two or more checkpoints, parameter by parameter, resumable, as long tables."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from effopd.dynamics.alignment import DIRECTIONS, paired_cosines, principal_cosines, relative_gaps
from effopd.dynamics.checkpoints import Checkpoint, Parameter, blocks, shared_parameters
from effopd.dynamics.norms import update_size
from effopd.dynamics.spectra import TOLERANCE, Directions, decompose
from effopd.dynamics.trajectory import align_signs, neighbour_map, principal_path
from effopd.runtime.artifacts import atomic_path, fingerprint_of, read_manifest, write_manifest
from effopd.runtime.errors import ArtifactError, UserError
from effopd.runtime.fingerprints import code_digest
from effopd.runtime.locks import exclusive
from effopd.runtime.progress import Progress, say

TABLES = ("norms", "sparsity", "spectra", "alignment", "trajectory")
KIND, MANIFEST = "analysis", "analysis.json"
Rows = dict[str, list[dict[str, Any]]]
Pairs = Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def analyse_parameter(
    parameter: Parameter, steps: Sequence[int], pairs: Pairs, device: torch.device, tolerance: float = TOLERANCE
) -> Rows:
    """The rows of every table for one parameter, its base against each of its trained versions.

    `steps` are increasing; the last is the final checkpoint, with which the others are aligned. `pairs(step)` gives the
    (base, trained) values of that step in blocks of rows, in any float type; a projection matrix's in one block. Holds
    one such pair at a time. Raises ValueError where a value is not finite.
    """
    rows: Rows = {table: [] for table in TABLES}
    place = {"parameter": parameter.name, "layer": parameter.layer, "module": parameter.module}
    found: dict[int, Directions] = {}
    for step in steps:
        kept: list[torch.Tensor] = []
        size = update_size(_deltas(pairs(step), device, kept if parameter.is_projection else None))
        if not math.isfinite(size.frobenius_norm + size.base_norm):
            raise ValueError(f"{parameter.name} has values that are not finite, in the base or at step {step}")
        row = {**place, "step": step}
        relative = size.frobenius_norm / size.base_norm if size.base_norm else math.nan
        norms = {"frobenius_norm": size.frobenius_norm, "base_norm": size.base_norm, "relative_norm": relative}
        rows["norms"].append({**row, **norms, "elements": size.elements})
        rows["sparsity"] += [
            {**row, "tolerance": bound, "sparsity": fraction, "elements": size.elements}
            for bound, fraction in size.unmoved.items()
        ]
        if kept:
            spectrum, found[step] = decompose(kept.pop(), DIRECTIONS if len(steps) > 1 else 0, tolerance)
            rows["spectra"].append({**row, **vars(spectrum)})
    if len(found) > 1:
        rows["alignment"] = [{**place, **row} for row in _alignment(found, steps)]
        rows["trajectory"] = [{**place, **row} for row in _trajectory(found, steps)]
    return rows


def _deltas(
    pairs: Iterator[tuple[torch.Tensor, torch.Tensor]], device: torch.device, kept: list[torch.Tensor] | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(base, Delta) in float32 on the device; the Deltas are appended to `kept`."""
    for base, trained in pairs:
        weights = base.to(device, torch.float32)
        delta = trained.to(device, torch.float32) - weights
        if kept is not None:
            kept.append(delta)
        yield weights, delta


def _alignment(found: Mapping[int, Directions], steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    final = found[steps[-1]]
    for step in steps[:-1]:
        here = found[step]
        columns = {
            "left_cosine": paired_cosines(here.left, final.left),
            "right_cosine": paired_cosines(here.right, final.right),
            "left_principal_cosine": principal_cosines(here.left, final.left),
            "right_principal_cosine": principal_cosines(here.right, final.right),
            "relative_gap": relative_gaps(here.values),
        }
        for i in range(len(here.values)):
            yield {"step": step, "direction": i + 1, **{name: float(column[i]) for name, column in columns.items()}}


def _trajectory(found: Mapping[int, Directions], steps: Sequence[int]) -> Iterator[dict[str, Any]]:
    vectors = align_signs(np.stack([found[step].left[:, 0] for step in steps]))
    path, explained = principal_path(vectors)
    nearby = neighbour_map(vectors)
    for i, step in enumerate(steps):
        cosine = float(vectors[i] @ vectors[-1])
        coordinates = {"pc1": path[i, 0], "pc2": path[i, 1], "tsne1": nearby[i, 0], "tsne2": nearby[i, 1]}
        shown = {name: float(value) for name, value in coordinates.items()}
        yield {"step": step, **shown, "cosine_to_final": cosine, "explained_variance_ratio": explained}


def analyse_checkpoints(
    base: Path, trained: Mapping[int, Path], out: Path, device: torch.device, tolerance: float = TOLERANCE
) -> dict[str, pd.DataFrame]:
    """Compare the checkpoints `trained` (step -> path) with `base`; write <table>.parquet in `out`, and return them.

    A killed analysis goes on after its last finished parameter; a finished one of the same files, code and tolerance is
    read back. Raises UserError where the checkpoints cannot be compared.
    """
    started = time.time()
    steps = sorted(trained)
    first, *others = (Checkpoint.open(path) for path in (base, *(trained[step] for step in steps)))
    by_step = dict(zip(steps, others, strict=True))
    parameters = shared_parameters([first, *others])
    if not any(parameter.is_projection for parameter in parameters):
        say(f"{base} has no parameter named like an attention or MLP matrix: there will be no spectra")
    parents = {"base": first.fingerprint} | {f"step {step}": by_step[step].fingerprint for step in steps}
    spec = {"code": code_digest(__name__), "tolerance": tolerance}
    fingerprint = fingerprint_of(KIND, spec, parents)
    with exclusive(out), threadpool_limits(torch.get_num_threads()):
        if tables := _finished(out / MANIFEST, fingerprint):
            say(f"{out} holds this analysis already")
            return tables
        journal = Journal(out / "partial.jsonl", fingerprint)
        left = [parameter for parameter in parameters if parameter.name not in journal.rows]
        progress = Progress("parameters", len(parameters), len(journal.rows))
        for parameter in left:
            try:
                rows = analyse_parameter(
                    parameter, steps, partial(_pairs, parameter, first, by_step), device, tolerance
                )
            except ValueError as error:
                paths = ", ".join(str(trained[step]) for step in steps)
                raise UserError(f"{base} against {paths}: {error}. Check how the checkpoint was saved.") from None
            journal.add(parameter.name, rows)
            progress.update(len(journal.rows), norm=rows["norms"][-1]["frobenius_norm"])
        tables = _tables([journal.rows[parameter.name] for parameter in parameters])
        _write(tables, out, spec, parents, started)
        journal.path.unlink()
    return tables


def _pairs(
    parameter: Parameter, base: Checkpoint, trained: Mapping[int, Checkpoint], step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for rows in blocks(parameter, whole=parameter.is_projection):
        yield base.read(parameter.name, rows), trained[step].read(parameter.name, rows)


class Journal:
    """Finished parameters of an unfinished analysis, a line each; those of another analysis are dropped."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.rows: dict[str, Rows] = {}
        header = json.dumps({"fingerprint": fingerprint})
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        if lines[:1] == [header.encode()]:
            whole = lines[:-1]  # after the last newline there is nothing, or a line that a kill cut short
            self.rows = {entry["parameter"]: entry["rows"] for entry in map(json.loads, whole[1:])}
        else:
            whole = [header.encode()]
        path.write_bytes(b"\n".join(whole) + b"\n")

    def add(self, parameter: str, rows: Rows) -> None:
        self.rows[parameter] = rows
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"parameter": parameter, "rows": rows}) + "\n")


def _tables(rows: Sequence[Rows]) -> dict[str, pd.DataFrame]:
    """The tables that have rows, sorted as the parameters are, then by step."""
    tables = {}
    for name in TABLES:
        if table := [row for parameter in rows for row in parameter[name]]:
            tables[name] = pd.DataFrame(table).astype({"layer": "Int64"})
    return tables


def _write(
    tables: Mapping[str, pd.DataFrame], out: Path, spec: dict[str, Any], parents: dict[str, str], started: float
) -> None:
    (out / MANIFEST).unlink(missing_ok=True)
    for name in TABLES:
        path = out / f"{name}.parquet"
        if name not in tables:
            path.unlink(missing_ok=True)  # of another analysis in this folder
            continue
        with atomic_path(path) as temporary:
            tables[name].to_parquet(temporary, index=False)
    files = {f"{name}.parquet": out / f"{name}.parquet" for name in tables}
    write_manifest(out / MANIFEST, kind=KIND, spec=spec, parents=parents, files=files, started=started)


def _finished(path: Path, fingerprint: str) -> dict[str, pd.DataFrame] | None:
    """The tables of a finished analysis with this fingerprint, if it is there and whole."""
    try:
        manifest = read_manifest(path, KIND)
        if manifest.fingerprint != fingerprint:
            return None
        names = [name for name in TABLES if f"{name}.parquet" in manifest.files]
        return {name: pd.read_parquet(manifest.file(f"{name}.parquet")) for name in names}
    except ArtifactError:
        return None
