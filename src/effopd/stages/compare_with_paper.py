"""The table of the paper's numbers on weights beside this experiment's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from effopd.common.progress import say
from effopd.dynamics.paper import AGREES, DIFFERS, OPEN, Value, comparisons
from effopd.report.tables import read_csv, write_csv
from effopd.specs.reports import CompareWithPaper

COLUMNS = ["claim", "run", "paper_rl", "paper_opd", "rl", "value", "value_low", "value_high", "verdict"]


def compare_with_paper(spec: CompareWithPaper, results: Path, out: Path) -> None:
    """Write the CSV `out`: one row per claim of the paper and run, with the run's value and whether it agrees."""
    tables = {name: read_csv(results / f"tables/{name}.csv", text=("seed",)) for name in spec.tables}
    found = comparisons(tables, spec.runs, spec.models, spec.confidence)
    nothing = Value(float("nan"), float("nan"), float("nan"))
    rows = [
        [c.claim, c.run, c.paper_rl, c.paper_opd, (c.model or nothing).mean, *vars(c.measured).values(), c.verdict]
        for c in found
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    write_csv(out, table)
    counts = table["verdict"].value_counts()
    say("done: " + ", ".join(f"{counts.get(word, 0)} {word}" for word in (AGREES, DIFFERS, OPEN)))
