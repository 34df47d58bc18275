"""What an analysis found, as a few lines of text; and the steps that name its checkpoints."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from effopd.common.errors import UserError
from effopd.common.formatting import shortened
from effopd.dynamics.norms import total_norms

SHOWN_SPARSITY = 1e-6
_SPECTRAL = ["spectral_to_frobenius", "effective_rank", "effective_rank_squared", "top1pct_norm_ratio"]


def numbered(checkpoints: Sequence[str]) -> dict[int, Path]:
    """Checkpoints by step, from texts `STEP=PATH` or `PATH`.

    Without a step, the number with which the folder's name ends (checkpoint-200), if all have one; otherwise 1, 2, ...
    in the order given. Raises UserError where a step comes twice, or only some have one.
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


def summarise(tables: Mapping[str, pd.DataFrame]) -> str:
    """A table by module type for the last step, and a line each on how it was computed and where training was heading.

    Spectral metrics are means over matrices, as in the paper; norms are of all parameters of the type together.
    """
    last = int(tables["norms"]["step"].max())
    norms, sparsity = (_at(tables[name], last) for name in ("norms", "sparsity"))
    sparsity = sparsity[sparsity["tolerance"] == SHOWN_SPARSITY]
    rows = total_norms(norms, ["module"]).set_index("module")
    rows.loc["all"] = total_norms(norms.assign(module="all"), ["module"]).set_index("module").loc["all"]
    unmoved = sparsity["sparsity"] * sparsity["elements"]
    share = unmoved.groupby(sparsity["module"]).sum() / sparsity.groupby("module")["elements"].sum()
    share["all"] = unmoved.sum() / sparsity["elements"].sum()
    shown = pd.DataFrame({"||Delta||": rows["frobenius_norm"], "% of base": 100 * rows["relative_norm"]})
    shown[f"% |Delta| <= {SHOWN_SPARSITY:g}"] = 100 * share
    lines = []
    if "spectra" in tables:
        spectra = _at(tables["spectra"], last)
        means = spectra.groupby("module")[_SPECTRAL].mean()
        means.loc["all"] = spectra[_SPECTRAL].mean()
        shown["rho %"] = 100 * means["spectral_to_frobenius"]
        shown["eff. rank"], shown["(squared)"] = means["effective_rank"], means["effective_rank_squared"]
        shown["R top 1% %"] = 100 * means["top1pct_norm_ratio"]
        counts = spectra["method"].value_counts()
        errors = spectra[[name for name in spectra.columns if name.endswith("_error")]].max(axis=None)
        methods = ", ".join(f"{count} by {method}" for method, count in counts.items())
        lines.append(f"{len(spectra)} spectra: {methods}; largest relative error of a metric {errors:.1g}")
    if "embeddings" in tables:
        lines += [
            f"{row.parameter}: rows' cosine to the base's {row.mean_cosine:.6f} (mean), {row.min_cosine:.6f} (least)"
            for row in _at(tables["embeddings"], last).itertuples()
        ]
    if "alignment" in tables:
        means = tables["alignment"].groupby("step")[["left_cosine", "left_principal_cosine"]].mean()
        lines += [
            f"step {step}: cosine of its leading directions to step {last}'s {row['left_cosine']:.3f} by index, "
            f"{row['left_principal_cosine']:.3f} by principal angle"
            for step, row in means.iterrows()
        ]
    if "trajectory" in tables:
        explained = tables["trajectory"].groupby("parameter")["explained_variance_ratio"].first().mean()
        lines.append(f"two principal components explain {100 * explained:.1f} % of the first direction's path")
    table = shown.to_string(na_rep="", float_format=lambda value: f"{value:.4g}", index_names=False)
    return "\n".join([f"step {last} against the base, by module type", table, *lines])


def _at(table: pd.DataFrame, step: int) -> pd.DataFrame:
    return table[table["step"] == step]
