"""What the report says of the paper's claims and of the local theory, in words and as a table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from effopd.dynamics.paper import AGREES, DIFFERS, OPEN
from effopd.report.labels import label_of

CONVERGED = 1e-2  # relative residual of an eigenpair that counts


SAID = {AGREES: "holds for", DIFFERS: "does not hold for", OPEN: "is not shown for"}


def claims(config: dict[str, Any], paper: pd.DataFrame) -> list[str]:
    """A sentence for each of the paper's claims about weights: for which runs it holds, does not, or is not shown."""
    sentences = []
    for claim, rows in paper.groupby("claim", sort=False):
        said = []
        for word, verb in SAID.items():
            names = [label_of(config, run) for run in rows.loc[rows["verdict"] == word, "run"]]
            if names:
                said.append(f"{verb} {', '.join(names)}")
        sentences.append(f"The paper finds that {claim}. Here this {'; it '.join(said)}.")
    return sentences


def paper_rows(config: dict[str, Any], paper: pd.DataFrame) -> list[dict[str, str]]:
    """The paper's numbers beside ours, one row per claim and one column per run, with intervals over seeds."""
    runs = list(dict.fromkeys(paper["run"]))
    rows = []
    for claim, of_claim in paper.fillna({"paper_rl": "", "paper_opd": ""}).groupby("claim", sort=False):
        first, by_run = of_claim.iloc[0], of_claim.set_index("run")
        row = {"claim": claim, "paper, RL": first["paper_rl"], "paper, OPD": first["paper_opd"]}
        row["teacher here"] = ", ".join(dict.fromkeys(f"{value:.4g}" for value in of_claim["rl"].dropna()))
        for run in runs:
            cells = by_run.loc[run, ["value", "value_low", "value_high"]] if run in by_run.index else None
            row[label_of(config, run)] = "" if cells is None else _number(*cells)
        rows.append(row)
    return rows


def _number(mean: float, low: float, high: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.4g}" if math.isnan(low) else f"{mean:.4g} ({low:.4g} to {high:.4g})"


def local_theory_findings(config: dict[str, Any], tables: dict[str, pd.DataFrame]) -> list[str]:
    """What the local theory's tables say, in words."""
    eigenspace, path = tables["local_eigenspace"], tables["local_path"]
    sentences = []
    for (student, teacher), rows in eigenspace.groupby(["student", "teacher"], sort=False):
        shares = {}
        for start, of_start in rows.groupby("start"):
            settled = of_start[of_start["relative_residual"].lt(CONVERGED).cumprod().astype(bool)]
            shares[start] = (len(settled), settled["cumulative_share"].iloc[-1] if len(settled) else math.nan)
        count, share = shares["b"]
        if count:
            sentences.append(
                f"Of the gradient b of {student} towards {teacher}, {share:.1%} of the squared length lies in the "
                f"leading {count} of A's eigenvectors (those that converged); of a random vector "
                f"{shares['random'][1]:.1g}."
            )
    last = path[(path["seed"] == "mean") & (path["step"] == path.groupby("run")["step"].transform("max"))]
    cosines = [
        f"{label_of(config, row['run'])} {_number(row['cosine'], row['cosine_low'], row['cosine_high'])}"
        for _, row in last.iterrows()
        if not math.isnan(row["cosine"])
    ]
    if cosines:
        sentences.append(
            "Cosine of the last observed update to the one that gradient descent on the local quadratic predicts at "
            f"the same length: {', '.join(cosines)}. Training takes AdamW's steps, nearer to the gradient's signs."
        )
    return sentences
