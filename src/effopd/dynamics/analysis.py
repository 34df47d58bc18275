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
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from threadpoolctl import threadpool_limits

from effopd.artifacts.fingerprints import code_digest
from effopd.artifacts.folders import check_own
from effopd.artifacts.locks import exclusive
from effopd.artifacts.manifests import atomic_path, fingerprint_of, read_manifest, write_manifest
from effopd.artifacts.resume_log import Journal
from effopd.common.errors import ArtifactError, UserError
from effopd.common.progress import Progress, say
from effopd.dynamics.alignment import DIRECTIONS, paired_cosines, principal_cosines, relative_gaps
from effopd.dynamics.embeddings import EMBEDDINGS, row_cosines
from effopd.dynamics.norms import update_size
from effopd.dynamics.spectra import TOLERANCE, Directions, decompose
from effopd.dynamics.trajectory import align_signs, neighbour_map, principal_path
from effopd.models.weight_files import Checkpoint, Parameter, blocks, shared_parameters

TABLES = ("norms", "sparsity", "spectra", "alignment", "trajectory", "embeddings")
KIND, MANIFEST, JOURNAL = "analysis", "analysis.json", "partial.jsonl"
Rows = dict[str, list[dict[str, Any]]]
Pairs = Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]


def analyse_parameter(
    parameter: Parameter, steps: Sequence[int], pairs: Pairs, device: torch.device, tolerance: float = TOLERANCE
) -> Rows:
    """The rows of every table for one parameter, its base against each of its trained versions.

    `steps` are increasing; the last is the final checkpoint, with which the others are aligned. `pairs(step)` gives the
    (base, trained) values of that step in blocks of rows, in any float type; a projection matrix's in one block. Holds
    one such pair at a time. Raises ValueError if a value is not finite.
    """
    rows: Rows = {table: [] for table in TABLES}
    place = {"parameter": parameter.name, "layer": parameter.layer, "module": parameter.module}
    found: dict[int, Directions] = {}
    for step in steps:
        kept: list[torch.Tensor] = []
        cosines: list[torch.Tensor] = []
        deltas = _deltas(pairs(step), device, kept if parameter.is_projection else None)
        if parameter.module in EMBEDDINGS and len(parameter.shape) == 2:
            deltas = _with_cosines(deltas, cosines)
        size = update_size(deltas)
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
        if cosines:
            each = torch.cat(cosines)
            summary = {"mean_cosine": float(each.mean()), "min_cosine": float(each.min()), "rows": len(each)}
            rows["embeddings"].append({**row, **summary})
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


def _with_cosines(
    deltas: Iterator[tuple[torch.Tensor, torch.Tensor]], cosines: list[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The same blocks; the cosines of their rows are appended to `cosines`."""
    for base, delta in deltas:
        cosines.append(row_cosines(base, base + delta))
        yield base, delta


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
) -> dict[str, pa.Table]:
    """Compare the checkpoints `trained` (step -> path) with `base`; write <table>.parquet in `out`, and return them.

    A killed analysis goes on after its last finished parameter; a finished one of the same files, code and tolerance is
    read back. Raises UserError if the checkpoints cannot be compared, or `out` is somebody else's folder.
    """
    for path in (base, *trained.values()):
        if out.resolve() in (path.resolve(), path.resolve().parent if path.is_file() else None):
            raise UserError(f"--out is {out}, which holds the checkpoint {path}. Choose another folder.")
    check_own(out, (MANIFEST, JOURNAL), "tables would replace those of the same names")
    first = Checkpoint.open(base)
    by_step = {step: Checkpoint.open(trained[step]) for step in sorted(trained)}
    parents = {"base": first.fingerprint} | {f"step {step}": by_step[step].fingerprint for step in by_step}
    spec = {"code": code_digest(__name__), "tolerance": tolerance}
    return analyze(first, by_step, out / MANIFEST, out, spec=spec, parents=parents, device=device)


def analyze(
    base: Checkpoint,
    trained: Mapping[int, Checkpoint],
    out: Path,
    work: Path,
    *,
    spec: dict[str, Any],
    parents: dict[str, str],
    device: torch.device,
) -> dict[str, pa.Table]:
    """The same for checkpoints whose `parents` name them, with spec["tolerance"].

    Writes the manifest `out` and the tables beside it. The folder `work` is locked meanwhile, and keeps the finished
    parts of a killed analysis.
    """
    started = time.time()
    steps = sorted(trained)
    parameters = shared_parameters([base, *(trained[step] for step in steps)])
    if not any(parameter.is_projection for parameter in parameters):
        say(f"{base.path} has no parameter named like an attention or MLP matrix: there will be no spectra")
    fingerprint = fingerprint_of(KIND, spec, parents)
    with exclusive(work), threadpool_limits(torch.get_num_threads()):
        if tables := _finished(out, fingerprint):
            say(f"{out.parent} holds this analysis already")
            return tables
        journal = Journal(work / JOURNAL, fingerprint)
        left = [parameter for parameter in parameters if parameter.name not in journal.parts]
        progress = Progress("parameters", len(parameters), len(journal.parts))
        for parameter in left:
            pairs = partial(_pairs, parameter, base, trained)
            try:
                rows = analyse_parameter(parameter, steps, pairs, device, spec["tolerance"])
            except ValueError as error:
                paths = ", ".join(str(trained[step].path) for step in steps)
                raise UserError(f"{base.path} against {paths}: {error}. Check how the checkpoint was saved.") from None
            journal.add(parameter.name, rows)
            progress.update(len(journal.parts), norm=rows["norms"][-1]["frobenius_norm"])
        tables = _tables([journal.parts[parameter.name] for parameter in parameters])
        _write(tables, out, spec, parents, started)
        journal.discard()
    return tables


def _pairs(
    parameter: Parameter, base: Checkpoint, trained: Mapping[int, Checkpoint], step: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for rows in blocks(parameter, whole=parameter.is_projection):
        yield base.read(parameter.name, rows), trained[step].read(parameter.name, rows)


def _tables(rows: Sequence[Rows]) -> dict[str, pa.Table]:
    """The tables that have rows, sorted as the parameters are, then by step."""
    every = {name: [row for parameter in rows for row in parameter[name]] for name in TABLES}
    return {name: arrow_table(table) for name, table in every.items() if table}


def arrow_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows with the same keys as an Arrow table. NaN becomes null; pandas reads `layer` as integers, some missing."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        kind = pa.int64() if name == "layer" else pa.infer_type(values)
        columns[name] = pa.array(values, pa.large_string() if pa.types.is_string(kind) else kind, from_pandas=True)
    return pa.table(columns).replace_schema_metadata({"pandas": _LAYERS})


_LAYERS = json.dumps(
    {
        "index_columns": [],
        "column_indexes": [],
        "columns": [
            {"name": "layer", "field_name": "layer", "pandas_type": "int64", "numpy_type": "Int64", "metadata": None}
        ],
        "pandas_version": "1.0.0",
    }
)


def _write(
    tables: Mapping[str, pa.Table], out: Path, spec: dict[str, Any], parents: dict[str, str], started: float
) -> None:
    out.unlink(missing_ok=True)
    for name in TABLES:
        path = out.with_name(f"{name}.parquet")
        if name not in tables:
            path.unlink(missing_ok=True)  # of another analysis in this folder
            continue
        with atomic_path(path) as temporary:
            pq.write_table(tables[name], temporary)
    files = {f"{name}.parquet": out.with_name(f"{name}.parquet") for name in tables}
    write_manifest(out, kind=KIND, spec=spec, parents=parents, files=files, started=started)


def _finished(path: Path, fingerprint: str) -> dict[str, pa.Table] | None:
    """The tables of a finished analysis with this fingerprint, if it is there and whole."""
    try:
        manifest = read_manifest(path, KIND)
        if manifest.fingerprint != fingerprint:
            return None
        names = [name for name in TABLES if f"{name}.parquet" in manifest.files]
        return {name: pq.read_table(manifest.file(f"{name}.parquet")) for name in names}
    except ArtifactError:
        return None
