"""The report: one page with what was found, how sure it is, and what made it; opens without a network."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from effopd.artifacts.manifest_format import check_checks
from effopd.artifacts.manifests import Manifest, package_versions, read_manifest, write_text
from effopd.common.errors import ArtifactError
from effopd.common.progress import say
from effopd.common.strict_json import read_json
from effopd.config.files import as_yaml
from effopd.evaluation.statistics import MEAN
from effopd.report.claims import claims, local_theory_findings, paper_rows
from effopd.report.dynamics_findings import dynamics_section
from effopd.report.figures import captions
from effopd.report.findings import comparison_section
from effopd.report.labels import label_of, with_interval
from effopd.report.samples import samples_section
from effopd.report.table_columns import COLUMNS
from effopd.report.tables import read_csv
from effopd.specs.reports import WriteReport


def write_report(spec: WriteReport, results: Path, out: Path) -> None:
    """Write the report `out` from the tables, figures and manifests of the results folder."""
    order = {"runs": spec.runs, "predictions": spec.predictions}
    config = {**spec.config, **{name: {key: spec.config[name][key] for key in keys} for name, keys in order.items()}}
    compared = {**config, "runs": {**config["runs"], **config["predictions"]}}  # the comparison tells no difference
    tables = {path.stem: read_csv(path) for name in COLUMNS if (path := results / f"tables/{name}.csv").exists()}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("effopd.report", "templates"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("report.html.jinja").render(
        confidence=f"{config['evaluation']['confidence']:.0%}",
        comparison=comparison_section(compared, tables),
        figures=_figures(captions.COMPARISON, spec.figures, results),
        weight_figures=_figures(captions.WEIGHTS, spec.figures, results),
        claims=claims(config, tables["paper_claims"]) if spec.dynamics_tables else [],
        paper=paper_rows(config, tables["paper_claims"]) if spec.dynamics_tables else [],
        theory=local_theory_findings(config, tables) if "local_theory" in spec.figures else [],
        summary=_summary_rows(compared, tables["summary"]),
        models=_model_rows(tables["models"]),
        by_source=by_source(compared, tables["sources"]) if spec.several_sources else [],
        other_tasks=_other_tasks(config, tables["tasks"]) if config["evaluation"]["tasks"] else [],
        preflights=_preflights(config, spec.preflights, results),
        dynamics=dynamics_section(config, tables) if spec.dynamics_tables else None,
        samples=samples_section(config, spec.samples, results),
        chain=_chain(config, results),
        config_yaml=as_yaml(config),
        seeds=config["seeds"],
        problems=int(tables["evaluation"]["completions"].max()) // config["evaluation"]["samples"],
        versions=package_versions(),
    )
    write_text(out, page)
    say(f"done: {len(page) // 1024} kB")


def _figures(texts: dict[str, tuple[str, str]], drawn: Sequence[str], results: Path) -> list[dict[str, Any]]:
    """Those of the figures drawn that have such texts, as the page shows them."""
    return [
        {
            "name": name,
            "title": title,
            "caption": caption,
            "bands": name not in captions.WITHOUT_BANDS,
            "svg": _inline_svg(results / f"figures/{name}.svg", name),
        }
        for name, (title, caption) in texts.items()
        if name in drawn
    ]


def _summary_rows(config: dict[str, Any], summary: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "run": label_of(config, row["run"]),
            "steps": f"{row['steps']:.0f}",
            "accuracy": with_interval(row, "accuracy", 100, 1, " %"),
            "reverse KL (nats per token)": with_interval(row, "reverse_kl"),
            "generated tokens": f"{row['generated_tokens']:,.0f}",
            "of them in gates": f"{row['gate_token_share']:.1%}",
            "scored tokens": f"{row['scored_tokens']:,.0f}",
            "seconds": f"{row['seconds']:.1f}",
        }
        for _, row in summary.iterrows()
    ]


def _model_rows(models: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "model": row["model"],
            "accuracy": f"{row['accuracy']:.1%}",
            "reverse KL to the teacher": f"{row['reverse_kl']:.4f}",
            "completion length (tokens)": f"{row['completion_length']:.1f}",
        }
        for _, row in models.iterrows()
    ]


def by_source(config: dict[str, Any], table: pd.DataFrame) -> list[dict[str, str]]:
    """Accuracy of each model, and of each run where it ends: a column for all test problems and for each source."""
    last = table[(table["seed"] == MEAN) & (table["step"] == table.groupby("run")["step"].transform("max"))]
    accuracy = last.apply(with_interval, axis=1, column="accuracy", scale=100, digits=1, unit=" %")
    wide = last.assign(accuracy=accuracy).pivot(index="run", columns="source", values="accuracy").fillna("none asked")
    wide = wide.loc[last["run"].unique(), last["source"].unique()]
    return [{"model or run": label_of(config, str(run)), **row} for run, row in wide.to_dict("index").items()]


def _other_tasks(config: dict[str, Any], table: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each task that is only evaluated on, a row for each model and run and, if it has several, each source."""
    means = table[table["seed"] == MEAN]
    found = []
    for task, own in means.groupby("task", sort=False):
        several = own["source"].nunique() > 1
        rows = [
            {
                "model or run": label_of(config, row["run"]),
                **({"source": row["source"]} if several else {}),
                "accuracy": with_interval(row, "accuracy", 100, 1, " %"),
                "completion length (tokens)": f"{row['completion_length']:.1f}",
                "problems": f"{row['problems']:,.0f}",
            }
            for _, row in own.iterrows()
        ]
        found.append({"name": task, "rows": rows})
    return found


def _preflights(config: dict[str, Any], preflights: Mapping[str, Sequence[str]], results: Path) -> list[dict[str, Any]]:
    """What was checked before training: for each student and teacher the runs that it let in, and a row a check."""
    found = []
    for name, runs in preflights.items():
        path = results / f"preflight/{name}.checks.json"
        if path.is_file():
            entry = read_json(path)
            check_checks(entry, path)
            checks = entry["recorded"]["checks"]
            student, teacher, _ = name.split("-")
            found.append(
                {
                    "title": f"{student}, taught by {teacher}: {', '.join(label_of(config, run) for run in runs)}",
                    "rows": [
                        {
                            "check": check["check"].replace("_", " "),
                            "outcome": check["outcome"],
                            "measured": check["measured"],
                            "means": " ".join(f"{check['why']} {check['remedy']}".split()),
                        }
                        for check in checks
                    ],
                }
            )
    return found


def _inline_svg(path: Path, prefix: str) -> str:
    """An SVG to stand inside a page: without its XML header, its ids made unique to the figure."""
    text = path.read_text(encoding="utf-8")
    if "<svg" not in text:
        raise ArtifactError(f"{path} is no SVG. Delete it and run the workflow again.")
    return re.sub(r"<[^<>]+>", lambda tag: _with_own_ids(tag[0], prefix), text[text.index("<svg") :])


def _with_own_ids(tag: str, prefix: str) -> str:
    """A tag whose ids, and what refers to them, begin with a prefix; the text between tags is a person's labels."""
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', tag)
    tag = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}-\2"', tag)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", tag)


ROWS = {"model": 0, "state": 1, "candidates": 2, "decision": 3, "evaluation": 4}
NAMES = {"state": "train_segment", "candidates": "evaluate_candidates", "decision": "select_candidate",
         "evaluation": "evaluate"}  # fmt: skip


def _chain(config: dict[str, Any], results: Path) -> dict[str, Any]:
    """The DAG of one run and seed, read from its manifests: nodes on a grid (one column per step) and their parents.

    Shows the first run that extrapolates, or else the first run.
    """
    seed = config["seeds"][0]
    folders = [results / f"runs/{run}/seed{seed}" for run in config["runs"]]
    folder = next((f for f in folders if any(f.glob("extrapolation/*/decision.json"))), folders[0])
    evaluations = results / "evaluation" / folder.parent.name / folder.name
    own: list[Manifest] = [read_manifest(path) for path in sorted(folder.glob("state/*/state.json"))]
    own += [read_manifest(path) for path in sorted(folder.glob("extrapolation/*/*.json"))]
    own += [read_manifest(path) for path in sorted(evaluations.glob("*.json"))]
    steps = sorted({manifest.result["step"] for manifest in own})
    columns = {step: column for column, step in enumerate(steps, start=2)}
    shared = [read_manifest(path) for path in sorted((results / "models").glob("*/manifest.json"))]
    shared.append(read_manifest(results / f"data/{config['task']['name']}/manifest.json", "data"))
    places: dict[str, tuple[float, float]] = {}
    nodes = []
    for position, manifest in enumerate(shared):
        name = manifest.path.parent.name
        column = 0 if manifest.kind == "data" else 1
        row = 2.0 if manifest.kind == "data" else 0.0 + 1.5 * position
        places[manifest.fingerprint] = (column, row)
        nodes.append({"label": name, "title": f"{manifest.path}\n{manifest.fingerprint}", "kind": manifest.kind,
                      "column": column, "row": row})  # fmt: skip
    for path in sorted(
        (results / "samples").glob("*/manifest.json")
    ):  # which stand where the model does that gave them
        sampled = read_manifest(path, "samples")
        if sampled.parents["model"] in places:
            places[sampled.fingerprint] = places[sampled.parents["model"]]
    for manifest in own:
        column, row = columns[manifest.result["step"]], ROWS[manifest.kind]
        places[manifest.fingerprint] = (column, row)
        label = f"step {manifest.result['step']}"
        if manifest.kind == "decision":
            coefficient = manifest.result["coefficient"]
            label = f"×{coefficient:g}" if coefficient else "kept"
            label += " =" if manifest.result.get("tie") else ""  # which older versions did not write
        nodes.append({"label": label, "title": f"{manifest.path}\n{manifest.fingerprint}", "kind": manifest.kind,
                      "column": column, "row": row})  # fmt: skip
    edges = [
        (places[parent], places[manifest.fingerprint])
        for manifest in [*shared, *own]
        for name, parent in manifest.parents.items()
        # every artifact depends on data and teacher: drawn for the models and first segment only
        if parent in places and (manifest in shared or name not in ("data", "teacher", "student") or manifest is own[0])
    ]
    return {
        "run": label_of(config, folder.parent.name),
        "seed": seed,
        "nodes": nodes,
        "edges": edges,
        "columns": len(steps) + 2,
        "rows": [{"name": html.escape(NAMES[kind]), "row": row} for kind, row in ROWS.items() if kind in NAMES],
    }
