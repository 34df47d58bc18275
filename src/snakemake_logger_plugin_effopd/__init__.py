"""Snakemake logger plugin `effopd`: a few lines on what runs, how far it is and what it found; the rest stays in logs.

Enabled by profiles/default; `snakemake --workflow-profile none ...` gives Snakemake's own output back.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from dataclasses import dataclass
from logging import ERROR, WARNING, LogRecord
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

HEARTBEAT_SECONDS = 10.0
# What each rule is called while it runs; rules that are not here are over before anybody could read their name.
DOING = {
    "make_data": "data:",
    "pretrain_model": "{model}:",
    "train_rl": "{model}:",
    "train_segment": "{run} seed {seed}:",
    "evaluate_candidates": "{run} seed {seed}: gate at step {step},",
    "evaluate": "{run} seed {seed}: evaluation at step {step},",
    "plot_figure": "drawing {figure},",
    "write_report": "report:",
}
OWN_ERROR = re.compile(r'WorkflowError(:| in file ".*common.smk", line \d+:)$')
REPEATED = ("RuleException", "Exiting because a job execution failed", "At least one job did not complete")
# Rules whose result is worth a line of its own.
MILESTONES = {
    "make_data": "data",
    "pretrain_model": "{model}",
    "train_rl": "{model}",
    "evaluate_model": "{model}",
    "collect_run": "{run} seed {seed}",
    "make_tables": "accuracy at the end",
    "write_report": "report",
}


@dataclass
class _Job:
    rule: str
    wildcards: dict[str, str]
    logs: list[str]

    def name(self, names: dict[str, str]) -> str:
        return names[self.rule].format(**self.wildcards)

    def last_line(self) -> str:
        """The last line of the job's log, where it says how far it is or what went wrong."""
        for log in self.logs:
            try:
                lines = Path(log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            except OSError:
                continue
            errors = [line for line in lines if line.startswith("error: ")]
            if errors or lines:
                return (errors or lines)[-1]
        return ""


class LogHandler(LogHandlerBase):
    """Prints milestones, a heartbeat, and errors with the last line of the failed job's log."""

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.jobs: dict[int, _Job] = {}
        self.running: dict[int, _Job] = {}
        self.done = self.total = 0
        self.failed = False
        self.spoke = time.monotonic()
        self.guard = threading.Lock()
        self.stopping = threading.Event()
        if not self.common_settings.dryrun:
            threading.Thread(target=self._beat, daemon=True).start()

    def emit(self, record: LogRecord) -> None:
        try:
            self._handle(record)
        except Exception:
            self.handleError(record)

    def _handle(self, record: LogRecord) -> None:
        event = getattr(record, "event", None)
        with self.guard:
            if event == LogEvent.JOB_INFO:
                self._job_info(record)
            elif event == LogEvent.JOB_FINISHED:
                self._job_finished(record.job_id)  # type: ignore[attr-defined]
            elif event == LogEvent.JOB_ERROR:
                self._job_error(record)
            elif event == LogEvent.PROGRESS:
                self.done, self.total = record.done, record.total  # type: ignore[attr-defined]
            elif event == LogEvent.SHELLCMD and self.common_settings.printshellcmds:
                print(f"    {record.shellcmd}", file=sys.stderr, flush=True)  # type: ignore[attr-defined]
            elif event == LogEvent.RUN_INFO:
                self._run_info(record)
            elif event in (LogEvent.ERROR, None) and record.levelno >= WARNING:
                self._error(record)
            elif event is None and record.getMessage().startswith("Nothing to be done"):
                self._say("nothing to be done: everything is up to date")

    def _error(self, record: LogRecord) -> None:
        """Errors of the workflow itself, on one line; those that repeat a failed job's stay in the log file."""
        text = record.getMessage()
        if self.failed and any(repeated in text for repeated in REPEATED):
            return
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if OWN_ERROR.match(lines[0] if lines else ""):  # raised on purpose: where in the code does not matter
            lines = [line for line in lines[1:] if not line.startswith('File "')]
        self._say(" ".join(lines), error=record.levelno >= ERROR)

    def _run_info(self, record: LogRecord) -> None:
        stats: dict[str, Any] = dict(record.stats)  # type: ignore[attr-defined]
        self.total = stats.pop("total", sum(stats.values()))
        counts = ", ".join(f"{count} {rule}" for rule, count in stats.items() if rule != "all")
        self._say(f"{self.total} jobs: {counts}")

    def _job_info(self, record: LogRecord) -> None:
        values = record.__dict__
        wildcards = {key: str(value) for key, value in dict(values.get("wildcards") or {}).items()}
        job = _Job(values["rule_name"], wildcards, [str(log) for log in values.get("log") or []])
        self.jobs[values["jobid"]] = self.running[values["jobid"]] = job
        if self.common_settings.dryrun:
            reasons = [part.split(":")[0].strip().lower() for part in str(values.get("reason") or "").split(";")]
            self._say(f"{job.rule} {' '.join(wildcards.values())}".strip() + f" ({', '.join(reasons)})")

    def _job_finished(self, number: int) -> None:
        job = self.running.pop(number, None)
        if job is not None and job.rule in MILESTONES:
            found = job.last_line().removeprefix("done: ")
            self._say(f"{job.name(MILESTONES)}: {found}")

    def _job_error(self, record: LogRecord) -> None:
        number = record.__dict__.get("jobid", record.__dict__.get("job_id"))
        job = self.jobs.get(number)  # type: ignore[arg-type]
        self.running.pop(number, None)  # type: ignore[arg-type]
        self.failed = True
        if job is None:
            self._say(record.getMessage(), error=True)
            return
        where = f" (log: {', '.join(job.logs)})" if job.logs else ""
        named = f"{job.rule} {' '.join(job.wildcards.values())}".strip()
        said = job.last_line()
        if not said.startswith("error: "):
            said = f"error: it ended without a message (killed?) after saying: {said or 'nothing'}"
        self._say(f"{named}: {said}{where}", error=True)

    def _beat(self) -> None:
        """Say what runs whenever nothing was said for a while."""
        while not self.stopping.wait(1.0):
            with self.guard:
                if time.monotonic() - self.spoke < HEARTBEAT_SECONDS or not self.running:
                    continue
                now = []
                for job in self.running.values():
                    if job.rule in DOING and not job.last_line().startswith("done: "):
                        now.append(f"{job.name(DOING)} {job.last_line() or 'starting'}")
                if now:
                    self._say(" | ".join(now))

    def _say(self, text: str, error: bool = False) -> None:
        self.spoke = time.monotonic()
        seconds = int(time.monotonic() - self.started)
        share = f" {self.done / self.total:4.0%}" if self.total and not self.common_settings.dryrun else ""
        clock = f"[{seconds // 60:2d}:{seconds % 60:02d}{share}]"
        colour = error and sys.stderr.isatty() and not self.common_settings.nocolor
        line = f"{clock} {text}"
        print(f"\033[31m{line}\033[0m" if colour else line, file=sys.stderr, flush=True)

    def close(self) -> None:
        self.stopping.set()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        return True

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return True

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False
