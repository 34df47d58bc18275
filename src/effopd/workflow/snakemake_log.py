"""What the jobs of a workflow do, from the log that Snakemake itself keeps of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from effopd.common.progress import lines_of

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
    running: dict[str, Job] = field(default_factory=dict)
    failed: dict[str, Job] = field(default_factory=dict)


def jobs_of(log: Path | None) -> Jobs:
    """Read Snakemake's log. A job that failed and was started again counts as running. Empty where there is no log."""
    jobs = Jobs()
    if log is None:
        return jobs
    job: Job | None = None
    failing = False
    for line in lines_of(log):
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
            elif failing:
                jobs.failed[value] = jobs.running.pop(value, job)
            else:
                jobs.failed.pop(value, None)
                jobs.running[value] = job
            continue
        if line.startswith("    "):
            continue
        job = None
        if found := _JOB.fullmatch(line) or _ERROR.fullmatch(line):
            job, failing = Job(found[1]), line.startswith("Error")
        elif found := _FINISHED.match(line):
            jobs.running.pop(found[1], None)
        elif found := _PROGRESS.fullmatch(line):
            jobs.done, jobs.total = int(found[1]), int(found[2])
        elif found := _COUNT.fullmatch(line):
            jobs.total = int(found[1])
    return jobs
