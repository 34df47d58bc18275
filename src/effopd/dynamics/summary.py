"""What an analysis found, as a few lines of text; and the steps that name its checkpoints."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from effopd.common.errors import UserError
from effopd.common.formatting import shortened

SHOWN_SPARSITY = 1e-6
_SPECTRAL = {  # what is shown of each spectral metric: heading and scale
    "spectral_to_frobenius": ("rho %", 100),
    "effective_rank": ("eff. rank", 1),
    "effective_rank_squared": ("(squared)", 1),
    "top1pct_norm_ratio": ("R top 1% %", 100),
}
Rows = Sequence[Mapping[str, Any]]


def numbered(checkpoints: Sequence[str]) -> dict[int, Path]:
    """Checkpoints by step, from texts `STEP=PATH` or `PATH`.

    Without a step, the number with which the folder's name ends (checkpoint-200), if all have one; otherwise 1, 2, ...
    in the order given. Raises UserError if a step comes twice, or only some have one.
    """
    given = [re.fullmatch(r"(?:(\d+)=)?(.+)", text, re.DOTALL) for text in checkpoints]
    if not all(given):
        raise UserError("--trained is empty. Give the folder of a checkpoint.")
    paths = [Path(match.group(2)) for match in given if match]
    labels = [match.group(1) for match in given if match]
    if any(labels) and not all(labels):
        raise UserError("--trained: some checkpoints have a step (STEP=PATH) and some have none. Give all or none.")
    endings = [re.search(r"(\d+)$", path.resolve().name) for path in paths]
    if not any(labels) and len(paths) > 1 and all(endings):
        labels = [match.group(1) for match in endings if match]
    if too_long := [label for label in labels if label and len(label) > 18]:
        raise UserError(
            f"--trained: step {shortened(too_long[0], 40)} is too large. Name the steps with STEP=PATH, smaller ones."
        )
    steps = [int(label) for label in labels if label] or list(range(1, len(paths) + 1))
    for step, count in Counter(steps).items():
        if count > 1:
            raise UserError(f"--trained: step {step} is given {count} times. Name the steps with STEP=PATH.")
    return dict(zip(steps, paths, strict=True))


def summarize(tables: Mapping[str, pa.Table]) -> str:
    """A table by module type for the last step, and one line each on how it was computed and where training went.

    Spectral metrics are means over matrices, as in the paper; norms are of all parameters of the type together.
    """
    every = {name: table.to_pylist() for name, table in tables.items()}
    last = max(row["step"] for row in every["norms"])
    at_last = {name: [row for row in rows if row["step"] == last] for name, rows in every.items()}
    norms, spectra = at_last["norms"], at_last.get("spectra", [])
    sparsity = [row for row in at_last["sparsity"] if row["tolerance"] == SHOWN_SPARSITY]
    shown = {}
    for module in [*sorted({row["module"] for row in norms}), "all"]:
        here = [[row for row in rows if module in (row["module"], "all")] for rows in (norms, sparsity, spectra)]
        shown[module] = _columns(*here)
    lines = []
    if spectra:
        methods = Counter(row["method"] for row in spectra).most_common()
        errors = [row[name] for row in spectra for name in row if name.endswith("_error") and row[name] is not None]
        described = ", ".join(f"{count} by {method}" for method, count in methods)
        lines.append(f"{len(spectra)} spectra: {described}; largest relative error of a metric {max(errors):.1g}")
    for row in at_last.get("embeddings", []):
        cosines = f"{_mean([row], 'mean_cosine'):.6f} (mean), {_mean([row], 'min_cosine'):.6f} (least)"
        lines.append(f"{row['parameter']}: rows' cosine to the base's {cosines}")
    for step, rows in _grouped(every.get("alignment", []), "step").items():
        lines.append(
            f"step {step}: cosine of its leading directions to step {last}'s {_mean(rows, 'left_cosine'):.3f} by "
            f"index, {_mean(rows, 'left_principal_cosine'):.3f} by principal angle"
        )
    if "trajectory" in every:
        firsts = [rows[0] for rows in _grouped(every["trajectory"], "parameter").values()]
        explained = 100 * _mean(firsts, "explained_variance_ratio")
        lines.append(f"two principal components explain {explained:.1f} % of the first direction's path")
    return "\n".join([f"step {last} against the base, by module type", *_aligned(shown), *lines])


def _columns(norms: Rows, sparsity: Rows, spectra: Rows) -> dict[str, float]:
    """What is shown of a group of parameters, by column; NaN if it is not known."""
    moved, base = (math.sqrt(sum(row[name] ** 2 for row in norms)) for name in ("frobenius_norm", "base_norm"))
    unmoved = sum(row["sparsity"] * row["elements"] for row in sparsity) / sum(row["elements"] for row in sparsity)
    columns = {"||Delta||": moved, "% of base": 100 * moved / base if base else math.nan}
    columns[f"% |Delta| <= {SHOWN_SPARSITY:g}"] = 100 * unmoved
    return columns | {name: scale * _mean(spectra, metric) for metric, (name, scale) in _SPECTRAL.items()}


def _aligned(shown: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The lines of a table with a heading: names to the left, numbers to the right, blank if they are NaN."""
    heading = next(iter(shown.values()))
    rows = [["", *heading]]
    rows += [[name, *("" if math.isnan(x) else f"{x:.4g}" for x in row.values())] for name, row in shown.items()]
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    cells = ([text.rjust(width) for text, width in zip(row[1:], widths, strict=True)] for row in rows)
    return ["  ".join([row[0].ljust(first), *line]) for row, line in zip(rows, cells, strict=True)]


def _grouped(rows: Rows, key: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Rows by their value of `key`, in the order in which the values first appear."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _mean(rows: Rows, name: str) -> float:
    """The mean of the values that are known; NaN without any."""
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) / len(known) if known else math.nan
