"""What the jobs of a workflow do: from what our logger plugin writes of it, or else from Snakemake's own log."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effopd.common.progress import lines_of

# Of Snakemake's own log, which is all there is where another logger ran (and was, in earlier versions).
_JOB = re.compile(r"(?:local)?rule (\w+):")
_ERROR = re.compile(r"Error in rule (\w+):")
_FINISHED = re.compile(r"Finished jobid: (\d+)")
_PROGRESS = re.compile(r"(\d{1,9}) of (\d{1,9}) steps \(\S+\) done")
_COUNT = re.compile(r"total +(\d{1,9})")
_FIELD = re.compile(r"    (jobid|log|output|wildcards): (.*)")


@dataclass
class Job:
    """A job that was started: its rule, the values of its wildcards, what it makes, and the logs of what it said."""

    rule: str
    wildcards: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return " ".join([self.rule, *self.wildcards])


@dataclass
class Jobs:
    """The jobs of one workflow: how many are done of how many, those started and not over, and those that failed.

    Once the workflow has ended, the ones that are not over were interrupted: Snakemake does them again.
    """

    done: int = 0
    total: int = 0
    running: dict[int, Job] = field(default_factory=dict)
    failed: dict[int, Job] = field(default_factory=dict)

    def start(self, number: int, job: Job) -> None:
        self.failed.pop(number, None)
        self.running[number] = job

    def fail(self, number: int, job: Job) -> None:
        self.failed[number] = self.running.pop(number, job)


def jobs_of(log: Path | None) -> Jobs:
    """The jobs of the workflow whose own log Snakemake keeps at `log`; what the plugin wrote beside it is preferred.

    A job that failed and was started again counts as running. Empty if there is no log.
    """
    if log is None:
        return Jobs()
    events = lines_of(events_beside(log))
    return _from_events(events) if events else _from_text(lines_of(log))


def events_beside(log: Path) -> Path:
    """Where the plugin writes what jobs do, beside the log that Snakemake keeps of the workflow, as JSON lines.

    Each is one of {"started": number of a job, **its Job}, {"failed": number, **its Job}, {"finished": number} and
    {"done": number of jobs, "total": number of jobs}.
    """
    return log.with_suffix(".jsonl")


def _from_events(lines: Iterable[str]) -> Jobs:
    jobs = Jobs()
    for line in lines:
        try:
            event: Any = json.loads(line)
        except (ValueError, RecursionError):  # torn, as by a kill
            continue
        match event:
            case {"started": int(number), "rule": str()} if job := _job_of(event):
                jobs.start(number, job)
            case {"failed": int(number), "rule": str()} if job := _job_of(event):
                jobs.fail(number, job)
            case {"finished": int(number)}:
                jobs.running.pop(number, None)
            case {"done": int(done), "total": int(total)}:
                jobs.done, jobs.total = done, total
    return jobs


def _job_of(event: Mapping[str, Any]) -> Job | None:
    """The job that an event is of; None if it is not one that the plugin writes. It may have more keys."""
    lists = [event.get(key, []) for key in ("wildcards", "outputs", "logs")]
    if not all(isinstance(values, list) and all(isinstance(value, str) for value in values) for values in lists):
        return None
    return Job(event["rule"], *lists)


def _from_text(lines: Iterable[str]) -> Jobs:
    jobs = Jobs()
    job: Job | None = None
    begin = jobs.start
    for line in lines:
        if found := _FIELD.fullmatch(line):
            key, value = found.groups()
            if job is None:
                continue
            if key == "log":
                job.logs = value.split(" (check ")[0].split(", ")
            elif key == "output":
                job.outputs = value.split(", ")
            elif key == "wildcards":
                job.wildcards = [value for value in re.findall(r"\w+=([^,]*)", value) if value]
            else:
                begin(int(value), job)
            continue
        if line.startswith("    "):
            continue
        job = None
        if found := _JOB.fullmatch(line) or _ERROR.fullmatch(line):
            job, begin = Job(found[1]), jobs.fail if line.startswith("Error") else jobs.start
        elif found := _FINISHED.match(line):
            jobs.running.pop(int(found[1]), None)
        elif found := _PROGRESS.fullmatch(line):
            jobs.done, jobs.total = int(found[1]), int(found[2])
        elif found := _COUNT.fullmatch(line):
            jobs.total = int(found[1])
    return jobs
