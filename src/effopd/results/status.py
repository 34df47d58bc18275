"""How far an experiment is: what is done, running and left, and what went wrong."""

from __future__ import annotations

import calendar
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effopd.artifacts.locks import Claim, look_at_claim
from effopd.artifacts.manifest_format import WHEN
from effopd.artifacts.manifests import Manifest
from effopd.common.errors import UserError
from effopd.common.formatting import aligned, duration_text
from effopd.common.progress import as_error, changed_at, last_said
from effopd.results.expected_artifacts import Holding, Inventory, Place
from effopd.workflow.experiment import TABLES
from effopd.workflow.job_specs import Plan
from effopd.workflow.snakemake_log import Job, jobs_of

WIDTH = 100
# An estimate of the time left is made once this share of the work of the runs is behind.
ENOUGH_DONE = 0.1


def status(results: Path) -> dict[str, Any]:
    """What is done, running and left in a results folder, as JSON values. Raises UserError if it holds no plan."""
    claim = look_at_claim(results)
    at_work = claim if claim and claim.running else None
    if at_work and not (results / "config.yaml").is_file():
        raise UserError(f"a workflow (process {at_work.pid}) has just begun in {results}. Ask again in a few seconds.")
    plan = Plan.of_results(results)
    inventory = Inventory(results, plan)
    folder = results.absolute().parent  # where the workflow runs, and its logs are
    jobs = jobs_of(claim.log if claim else None)
    runs = [_run(inventory, run, seed) for run in plan.runs for seed in plan.seeds]
    compared = [*inventory.evaluations.values(), *inventory.prediction_evaluations.values()]
    elsewhere = [*inventory.task_evaluations.values()]
    tables = _written(inventory, [f"tables/{name}.csv" for name in _tables(plan)], compared)
    task_table = _written(inventory, ["tables/tasks.csv"] if plan.other_tasks else [], elsewhere)
    return {
        "results": str(results),
        "workflow": {
            "running": at_work is not None,
            "pid": at_work.pid if at_work else None,
            "since": at_work.since if at_work else None,
            "jobs_done": jobs.done,
            "jobs": jobs.total,
        },
        "seconds_left": _seconds_left(inventory, runs, at_work.started) if at_work else None,
        "models": [
            {
                "model": model,
                "kind": plan.config["models"][model]["kind"],
                "trained": _word(inventory.models[model]),
                "evaluated": _word(inventory.model_evaluations[model]),
            }
            for model in plan.config["models"]
        ],
        "runs": runs,
        "products": {
            **_predictions(inventory),
            **_other_tasks(inventory),
            "dynamics": [sum(h.current for h in inventory.dynamics.values()), len(inventory.dynamics)],
            "tables": [sum(counts) for counts in zip(tables, task_table, strict=True)],
            "figures": _written(inventory, [f"figures/{name}.svg" for name in plan.figures()], compared),
            "report": _written(inventory, ["report.html"], [*compared, *elsewhere]),
        },
        "running": [
            {"job": job.name, "says": _says(job, folder, at_work)}
            for job in jobs.running.values()
            if at_work and job.logs
        ],
        "failed": [
            {
                "job": job.name,
                "error": as_error(last_said(folder / log for log in job.logs)).removeprefix("error: "),
                "logs": job.logs,
            }
            for job in jobs.failed.values()
        ],
    }


def _word(holding: Holding) -> str:
    return "yes" if holding.current else "out of date" if holding.outdated else "no"


def _predictions(inventory: Inventory) -> dict[str, list[int]]:
    """How many predictions are evaluated, of how many; nothing if the plan has none."""
    evaluated = inventory.prediction_evaluations.values()
    return {"predictions": [sum(h.current for h in evaluated), len(evaluated)]} if evaluated else {}


def _other_tasks(inventory: Inventory) -> dict[str, list[int]]:
    """How many evaluations on other tasks are there, of how many; nothing if the plan has no such task."""
    evaluated = inventory.task_evaluations.values()
    return {"other tasks": [sum(h.current for h in evaluated), len(evaluated)]} if evaluated else {}


def _tables(plan: Plan) -> list[str]:
    """The names of the tables of the comparison and of the weights."""
    return [*TABLES, *(["sources"] if plan.several_sources else []), *plan.dynamics_tables()]


def _written(inventory: Inventory, names: list[str], shown: Sequence[Holding]) -> list[int]:
    """How many of the files are there, of how many; none counts while what is `shown` there is not all up to date."""
    finished = all(holding.current for holding in shown)
    return [sum(finished and (inventory.results / name).is_file() for name in names), len(names)]


def _run(inventory: Inventory, run: str, seed: int) -> dict[str, Any]:
    """How far a run is with a seed: [done, of how many] of each kind, and how many artifacts are out of date."""
    kinds = {"states": inventory.states, "triggers": inventory.decisions, "evaluations": inventory.evaluations}
    own = {kind: inventory.of_run(holdings, run, seed) for kind, holdings in kinds.items()}
    return {
        "run": run,
        "seed": seed,
        "steps": [inventory.steps_done(run, seed), inventory.plan.boundaries(run)[-1]],
        **{kind: [sum(h.current for h in holdings), len(holdings)] for kind, holdings in own.items()},
        "out_of_date": sum(holding.outdated for holdings in own.values() for holding in holdings),
    }


def _says(job: Job, folder: Path, claim: Claim) -> str:
    """The last line of a running job's log; a log that is older than the workflow does not count."""
    logs = [folder / log for log in job.logs]
    if not any(changed_at(log) >= claim.started for log in logs):
        return "waiting to start"
    return last_said(logs) or "starting"


def _seconds_left(inventory: Inventory, runs: list[dict[str, Any]], started: float) -> float | None:
    """Seconds that the runs still need if their work goes on at the pace of this workflow so far.

    Work is what generating, scoring and updating took by the artifacts' own records: a state's steps, a trigger's gate,
    an evaluation; what is left is estimated from the same run's, if there are any. The pace is the work done per
    second since the first of it began, so start-up and waiting count. A run is not over before its own steps and gates
    are, one after the other. None if there is too little to go by: models are still being trained, some kind of work
    has not been done yet, or hardly any.
    """
    if not all(holding.current for holding in inventory.models.values()):
        return None
    kinds = {"steps": inventory.states, "triggers": inventory.decisions, "evaluations": inventory.evaluations}
    left = longest = 0.0
    for row in runs:
        chain = 0.0
        for kind, holdings in kinds.items():
            done, total = row[kind]
            if done == total:
                continue
            each = _work_of_one(inventory, holdings, row["run"])
            if each is None:
                return None
            left += (total - done) * each
            chain += each * (1 if kind == "evaluations" else total - done)
        longest = max(longest, chain)
    made = [h.manifest for holdings in kinds.values() for h in holdings.values() if h.manifest and h.current]
    recent = [manifest for manifest in made if _finished(manifest) >= started]
    behind = sum(map(_work, recent))
    if left == 0 or behind < ENOUGH_DONE * (behind + left):
        return None
    first = min(_finished(manifest) - manifest.recorded["seconds"] for manifest in recent)
    return float(max(left / behind * (time.time() - first), longest))


def _work_of_one(inventory: Inventory, holdings: Mapping[Place, Holding], run: str) -> float | None:
    """The mean work of a step, trigger or evaluation of a run; of all runs if it has none yet."""
    made = {place: h.manifest for place, h in holdings.items() if h.manifest and h.current}
    made = {place: manifest for place, manifest in made.items() if place[0] == run} or made
    units = sum(step - inventory.plan.previous_boundary(name, step) if holdings is inventory.states else 1
                for name, _, step in made)  # fmt: skip
    return sum(map(_work, made.values())) / units if units else None


def _work(manifest: Manifest) -> float:
    return sum(float(row["seconds"]) for row in manifest.recorded["cost"])


def _finished(manifest: Manifest) -> float:
    """When an artifact was finished, in seconds since the epoch."""
    return calendar.timegm(time.strptime(manifest.recorded["finished"], WHEN))


def describe(found: dict[str, Any]) -> list[str]:
    """The status as lines, of at most 100 characters if names are not too long."""
    lines = [*_headline(found), ""]
    lines += aligned([["model", "kind", "trained", "evaluated"], *(row.values() for row in found["models"])], left=4)
    counted = ("steps", "states", "triggers", "evaluations")
    rows = [
        [row["run"], row["seed"], *(_share(row[kind]) for kind in counted), row["out_of_date"] or "-"]
        for row in found["runs"]
    ]
    sums = [[sum(row[kind][i] for row in found["runs"]) for i in (0, 1)] for kind in counted]
    outdated = sum(row["out_of_date"] for row in found["runs"])
    rows.append(["all", "", *map(_share, sums), outdated or "-"])
    lines += ["", *aligned([["run", "seed", *counted, "out of date"], *rows])]
    products = ", ".join(f"{kind} {_share(count)}" for kind, count in found["products"].items())
    lines += ["", f"written: {products}"]
    running = [f"{entry['job']}: {entry['says']}" for entry in found["running"]]
    failed = [f"{entry['job']}: {entry['error']} (log: {', '.join(entry['logs'])})" for entry in found["failed"]]
    for title, entries in (("running", running), ("failed", failed)):
        if entries:
            lines += ["", f"{title}:", *(line for entry in entries for line in _wrapped(entry))]
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _headline(found: dict[str, Any]) -> list[str]:
    workflow = found["workflow"]
    progress = f"{workflow['jobs_done']} of {workflow['jobs']} jobs done"
    if workflow["running"]:
        left = "" if found["seconds_left"] is None else f", about {duration_text(found['seconds_left'])} left"
        who = f"process {workflow['pid']}, since {workflow['since']}"
        return [f"{found['results']}: a workflow is running ({who})", f"{progress}{left}"]
    ended = "" if workflow["jobs_done"] == workflow["jobs"] else f"; the last one ended early ({progress})"
    return [f"{found['results']}: no workflow is running{ended}"]


def _share(count: list[int]) -> str:
    return f"{count[0]}/{count[1]}" if count[1] else "-"
