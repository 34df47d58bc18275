"""What the report says of the weights: sentences and tables, from the tables in results/tables/."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from effopd.report.labels import label_of, percent, with_interval

Rows = list[dict[str, str]]
ATTENTION, MLP = ("q", "k", "v", "o", "qkv"), ("gate", "up", "down", "gate_up")
Tables = Mapping[str, pd.DataFrame]


def dynamics_section(config: dict[str, Any], tables: Tables) -> dict[str, Any]:
    """`findings`, a sentence each, and `tables` with `title`, `note` and `rows`.

    Of means over seeds; of one seed, the intervals are those over problems, if there are any. A difference is
    claimed only if its interval excludes none.
    """
    means = {name: _over_seeds(table) for name, table in tables.items() if name.startswith("dynamics_")}
    runs = list(dict.fromkeys(means["dynamics_norms"]["run"]))
    names = {run: label_of(config, run) for run in runs}
    found = _moved(means, names)
    shown = [_table("sizes", _size_rows(means, names))]
    if rows := _alignment_rows(means, names):
        shown.append(_table("alignment", rows))
    if "dynamics_interventions" in means:
        table = means["dynamics_interventions"]
        for run in runs:
            found += _interventions(table[table["run"] == run].set_index("variant"), names[run])
        shown += _intervention_tables(table, names)
    if "dynamics_representation" in means:
        shown.append(_table("representation", _representation_rows(means, names)))
    return {"findings": found, "tables": shown}


def _table(name: str, rows: Rows) -> dict[str, Any]:
    title, note = _TITLES[name]
    return {"title": title, "rows": rows, "note": note}


def _over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the means over seeds; of a run with one seed, that seed's."""
    seeds = table[table["seed"].astype(str) != "mean"].groupby("run")["seed"].nunique()
    single = table["run"].map(seeds) == 1
    return table[single != (table["seed"].astype(str) == "mean")]


def _last(table: pd.DataFrame, run: str) -> pd.DataFrame:
    own = table[table["run"] == run]
    return own[own["step"] == own["step"].max()]


def _moved(means: Tables, names: dict[str, str]) -> list[str]:
    """How runs compare with the models in norm and rank; silent if no model is looked into."""
    sentences = []
    models = [run for run in names if run.startswith("models/")]
    if not models:
        return []
    norms, spectra = means["dynamics_norms"], means["dynamics_spectra"]
    measures = {
        "norm": ("frobenius_norm", norms[(norms["module"] == "all") & (norms["layer"] == "all")]),
        "effective rank": ("effective_rank", spectra[spectra["module"] == "all"]),
        "share of the norm in the first direction": ("spectral_to_frobenius", spectra[spectra["module"] == "all"]),
    }
    for run in (run for run in names if run not in models):
        for model in models:
            words = []
            for what, (column, table) in measures.items():
                row, other = _last(table, run).iloc[0], _last(table, model)[column].iloc[0]
                low, high = row[f"{column}_low"], row[f"{column}_high"]
                if not math.isnan(low) and not low <= other <= high:
                    word = "more" if row[column] > other else "less"
                    words.append(f"{word} {what} ({row[column]:.3g} against {other:.3g})")
            if words:
                sentences.append(f"The update of {names[run]} has {_listed(words)} than that of {names[model]}.")
    return sentences


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}"


def _size_rows(means: Tables, names: dict[str, str]) -> Rows:
    rows = []
    for run, name in names.items():
        norms, spectra = _last(means["dynamics_norms"], run), _last(means["dynamics_spectra"], run)
        of_modules = norms[norms["layer"] == "all"].set_index("module")
        metrics = spectra[spectra["module"] == "all"].iloc[0] if len(spectra) else None
        share = of_modules["share"]
        row = {
            "run": name,
            "step": f"{norms['step'].iloc[0]:.0f}",
            "norm": with_interval(of_modules.loc["all"], "frobenius_norm"),
            "of the base's": percent(of_modules.loc["all", "relative_norm"], 2),
            "attention": percent(share.reindex(ATTENTION).sum()),
            "MLP": percent(share.reindex(MLP).sum()),
            "embedding and head": percent(share.reindex(["embedding", "lm_head"]).sum()),
        }
        if metrics is not None:
            row |= {
                "σ₁ / norm": with_interval(metrics, "spectral_to_frobenius", 100, 1, " %"),
                "effective rank": with_interval(metrics, "effective_rank", digits=1),
                "of squares": with_interval(metrics, "effective_rank_squared", digits=1),
                "norm in top 1 %": with_interval(metrics, "top1pct_norm_ratio", 100, 1, " %"),
            }
        rows.append(row)
    return rows


def _alignment_rows(means: Tables, names: dict[str, str]) -> Rows:
    rows = []
    for run, name in names.items():
        own = means["dynamics_alignment"]
        for _, row in own[own["run"] == run].iterrows():
            rows.append(
                {
                    "run": name,
                    "step": f"{row['step']:.0f}",
                    "first direction": with_interval(row, "cosine_to_final", digits=2),
                    "20 directions, by index": with_interval(row, "paired_cosine", digits=2),
                    "by principal angle": with_interval(row, "principal_cosine", digits=2),
                }
            )
    return rows


def _representation_rows(means: Tables, names: dict[str, str]) -> Rows:
    rows = []
    for run, name in names.items():
        layers = _last(means["dynamics_representation"], run).set_index("layer")
        rows.append({"run": name, **{f"layer {i}": with_interval(row, "cosine") for i, row in layers.iterrows()}})
    return rows


def _interventions(table: pd.DataFrame, name: str) -> list[str]:
    """What interventions on one run say of where its gain in accuracy lies."""
    loss = table.loc["base"]
    if not loss["accuracy_difference_high"] < 0 and not math.isnan(loss["accuracy_difference_high"]):
        return [
            f"{name} is not shown to be better than its base on these problems: what is left of its gain says nothing."
        ]
    if not loss["accuracy_difference"] < 0:
        return [f"{name} is no better than its base on these problems: what is left of its gain says nothing."]
    words = []
    for analysis, part, say in _CLAIMS:
        own = table[(table["analysis"] == analysis) & (table["part"].isna() if part is None else table["part"] == part)]
        if len(own) and (said := say(own)):
            words.append(said)
    return [f"Of what {name} gained in accuracy over its base, {'; '.join(words)}."] if words else []


def _nearest(own: pd.DataFrame, amount: float) -> pd.Series:
    return own.loc[(own["amount"] - amount).abs().idxmin()]


def _at_half(own: pd.DataFrame) -> str:
    row = _nearest(own, 0.5)
    return f"{percent(row['recovered'])} is there at {row['amount']:g} of the update"


def _of_top(own: pd.DataFrame) -> str:
    row = _nearest(own, 0.1)
    return f"{percent(row['recovered'])} with the leading {percent(row['amount'])} of each matrix's directions"


def _of_bottom(own: pd.DataFrame) -> str:
    row = _nearest(own, 0.9)
    return f"{percent(row['recovered'])} with the last {percent(row['amount'])} of them"


def _of_window(which: str) -> Callable[[pd.DataFrame], str]:
    def say(own: pd.DataFrame) -> str:
        best = own.loc[own["recovered"].idxmax()]
        where = f"layers {best['first_layer']:.0f} to {best['last_layer']:.0f}"
        return f"{percent(best['recovered'])} with {which} alone in the best window ({where})"

    return say


def _of_embeddings(own: pd.DataFrame) -> str:
    return f"{percent(own['recovered'].iloc[0])} with the base's token embeddings put back"


def _of_early(own: pd.DataFrame) -> str:
    row = _nearest(own, 1.0)
    return f"{percent(row['recovered'])} with the update of step {row['step']:.0f} at the final norm"


_CLAIMS: list[tuple[str, str | None, Callable[[pd.DataFrame], str]]] = [
    ("equal_norm", None, _at_half),
    ("reconstruction", "top", _of_top),
    ("reconstruction", "bottom", _of_bottom),
    ("norm_scaling", None, _of_early),
    ("window", "attention", _of_window("attention")),
    ("window", "mlp", _of_window("the MLPs")),
    ("embeddings", "embedding", _of_embeddings),
]

_TITLES = {
    "sizes": (
        "How far the weights moved, and along how many directions",
        "At the last kept step. Shares are of the squared norm; spectral metrics are means over attention and MLP "
        "matrices.",
    ),
    "alignment": (
        "How early the update points where it ends",
        "Cosines of leading left singular directions to the last step's, means over matrices. A step shares its past "
        "with the last one: alignment rises with time by itself.",
    ),
    "equal_norm": ("Base + a Δ", "Accuracy by a: from the base (0) to the last state (1)."),
    "reconstruction top": (
        "The leading directions of each update alone",
        "Accuracy by the share of directions kept in attention and MLP matrices, at the norm set in the configuration; "
        "0: those matrices as in the base, everything else as trained.",
    ),
    "reconstruction bottom": ("The last directions alone", "Accuracy by the share kept, not rescaled."),
    "norm_scaling": (
        "An early update, scaled",
        "Accuracy by β; 0: the early state as it was, 1: each parameter's early update at its final norm.",
    ),
    "window attention": ("Attention alone, in a window of layers", "Accuracy by the window's layers."),
    "window mlp": ("MLPs alone, in a window of layers", "Accuracy by the window's layers."),
    "window layer": ("Whole layers alone, in a window", "Accuracy by the window's layers."),
    "embeddings": ("The base's embeddings put back", "Accuracy, and its difference to the last state."),
    "representation": (
        "How far representations turned",
        "Cosine to the base's hidden states on its own completions, at the last step. Layer 0: token embeddings.",
    ),
}


def _intervention_tables(table: pd.DataFrame, names: dict[str, str]) -> list[dict[str, Any]]:
    parts = table["part"].where(table["analysis"] != "embeddings")
    kinds = table["analysis"].str.cat(parts, sep=" ", na_rep="").str.strip()
    found = []
    for kind in (name for name in _TITLES if (kinds == name).any()):
        own = table[kinds == kind]
        rows = [
            {"run": name, **dict(_cell(row) for _, row in own[own["run"] == run].iterrows())}
            for run, name in names.items()
            if (own["run"] == run).any()
        ]
        columns = dict.fromkeys(column for row in rows for column in row)
        found.append(_table(kind, [{column: row.get(column, "") for column in columns} for row in rows]))
    return found


def _cell(row: pd.Series) -> tuple[str, str]:
    accuracy = with_interval(row, "accuracy", 100, 1, " %")
    if row["analysis"] == "window":
        return f"{row['first_layer']:.0f}-{row['last_layer']:.0f}", accuracy
    if row["analysis"] == "embeddings":
        return row["variant"], f"{accuracy}; {with_interval(row, 'accuracy_difference', 100, 1, ' points')}"
    if row["analysis"] == "reconstruction":
        return f"{100 * row['amount']:g} %", accuracy
    return f"{row['amount']:g}", accuracy
