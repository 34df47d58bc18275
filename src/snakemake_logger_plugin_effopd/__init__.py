"""Snakemake logger plugin `effopd`: a few lines on what runs, how far it is and what it found; the rest stays in logs.

Enabled by profiles/default; `snakemake --workflow-profile none ...` gives Snakemake's own output back.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from logging import ERROR, WARNING, FileHandler, LogRecord
from pathlib import Path
from typing import IO, Any

from snakemake.logging import logger as snakemake_logger
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from effopd.common.progress import as_error, errors_at_the_end, last_said, lines_of
from effopd.workflow.snakemake_loader import read_strictly_what_snakemake_cannot
from effopd.workflow.snakemake_log import Job, events_beside

HEARTBEAT_SECONDS, LONGEST_SILENCE_SECONDS = 10.0, 320.0
SHOWN = 4  # running jobs that a heartbeat names
# What each rule is called while it runs; rules that are not here are over before anybody could read their name.
DOING = {
    "make_data": "data of {task}:",
    "tokenize_prompts": "{task} prompts of {model}:",
    "fetch_model": "{model}:",
    "pretrain_model": "{model}:",
    "train_rl": "{model}:",
    "sample_responses": "samples {sample}:",
    "train_sft": "{model}:",
    "preflight": "checks of {pair}:",
    "train_segment": "{run} seed {seed}:",
    "generate_rollouts": "{run} seed {seed}: rollouts of step {step},",
    "score_rollouts": "{run} seed {seed}: scores of step {step},",
    "update_policy": "{run} seed {seed}: update of step {step},",
    "evaluate_candidates": "{run} seed {seed}: gate at step {step},",
    "evaluate_candidate": "{run} seed {seed}: gate at step {step}, coefficient {coefficient},",
    "evaluate": "{run} seed {seed}: evaluation at step {step},",
    "evaluate_on_task": "{run} seed {seed}: evaluation on {task},",
    "evaluate_model_on_task": "{model}: evaluation on {task},",
    "validate_state": "{run} seed {seed}: validation at step {step},",
    "predict_weights": "{prediction} seed {seed}: prediction from step {step},",
    "evaluate_prediction": "{prediction} seed {seed}: evaluation at step {step},",
    "analyze_weights": "{subject}: weights:",
    "evaluate_interventions": "{subject}: interventions:",
    "plot_figure": "drawing {figure},",
    "write_report": "report:",
}
OWN_ERROR = re.compile(r'WorkflowError(:| in file ".*common.smk", line \d+:)$')
PROTECTED = re.compile(r"ProtectedOutputException.*affected files:\s*(?P<file>\S+)", re.DOTALL)
UNWRITABLE = (
    "error: {} cannot be written: its file system is read-only, or permissions forbid it. Everything finished is "
    "kept; run the same command again where it can be written."
)
REPEATED = ("RuleException", "Exiting because a job execution failed", "At least one job did not complete")
# What the SLURM executor says of each job, and what it warns of where a cluster has no accounts.
SUBMITTED = re.compile(r"Job (?P<job>\d+) has been submitted with SLURM jobid (?P<slurm>\S+)")
RESTARTED = re.compile(r"Trying to restart job (?P<job>\d+)")
SLURM_SAYS = re.compile(r"(srun|slurmstepd): ")
STATUS = re.compile(r"SLURM status is: '(?P<status>\w+)'")
ACCOUNTS = ("No SLURM account given", "No account was given", "Unable to guess SLURM account")
# Rules whose result is worth a line of its own.
MILESTONES = {
    "make_data": "data of {task}",
    "fetch_model": "{model}",
    "pretrain_model": "{model}",
    "train_rl": "{model}",
    "sample_responses": "samples {sample}",
    "train_sft": "{model}",
    "evaluate_model": "{model}",
    "preflight": "checks of {pair}",
    "collect_run": "{run} seed {seed}",
    "make_tables": "accuracy at the end",
    "make_dynamics_tables": "weights",
    "write_report": "report",
}


@dataclass
class _Job:
    rule: str
    wildcards: dict[str, str]
    outputs: list[str]
    logs: list[str]
    slurm: str = ""  # the job's number in SLURM
    stale: dict[str, int] = field(default_factory=dict)  # logs that an earlier attempt left, with their times

    def name(self, names: dict[str, str]) -> str:
        return names[self.rule].format(**self.wildcards)

    def facts(self) -> dict[str, Any]:
        """The job as it is written for `effopd status`."""
        return asdict(Job(self.rule, [value for value in self.wildcards.values() if value], self.outputs, self.logs))

    def title(self) -> str:
        return f"{self.rule} {' '.join(self.wildcards.values())}".strip()

    def submitted(self, slurm: str) -> None:
        """The job now waits in SLURM's queue, perhaps for hours: what its logs say is old."""
        self.slurm = slurm
        self.stale = {log: Path(log).stat().st_mtime_ns for log in self.logs if Path(log).exists()}

    def waiting(self) -> str:
        """What a job does that has said nothing yet."""
        return f"SLURM job {self.slurm}, queued or starting" if self.slurm else "starting"

    def last_line(self) -> str:
        """The last line of the job's log, if it says how far it is or what went wrong."""
        return last_said(
            log
            for log in self.logs
            if log not in self.stale or not Path(log).exists() or Path(log).stat().st_mtime_ns != self.stale[log]
        )

    def cause(self, message: str, logs: list[str]) -> str:
        """Why the job failed: SLURM's word where SLURM ended or refused it, else the last of the job's own."""
        said = self.last_line()
        if self.slurm and not said:
            said = next((line for line in reversed(lines_of(logs[-1])) if SLURM_SAYS.match(line)), "")
        status = STATUS.search(message)
        if status and status["status"] != "FAILED":
            return f"error: SLURM ended it ({status['status']}) after it said: {said or 'nothing'}"
        if message and not self.slurm:
            return f"error: {message.splitlines()[0]}"
        return as_error(said)


class LogHandler(LogHandlerBase):
    """Prints milestones, a heartbeat, and errors with the last line of the failed job's log."""

    def __post_init__(self) -> None:
        read_strictly_what_snakemake_cannot()  # the first code of this project that runs, before files are read
        self.started = time.monotonic()
        self.jobs: dict[int, _Job] = {}
        self.running: dict[int, _Job] = {}
        self.done = self.total = 0
        self.failed = False
        self.events: IO[str] | None = None
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
                self._record(finished=record.job_id)  # type: ignore[attr-defined]
            elif event == LogEvent.JOB_ERROR:
                self._job_error(record)
            elif event == LogEvent.PROGRESS:
                self.done, self.total = record.done, record.total  # type: ignore[attr-defined]
                self._record(done=self.done, total=self.total)
            elif event == LogEvent.SHELLCMD and self.common_settings.printshellcmds:
                print(f"    {record.shellcmd}", file=sys.stderr, flush=True)  # type: ignore[attr-defined]
            elif event == LogEvent.RUN_INFO:
                self._run_info(record)
            elif event in (LogEvent.ERROR, None) and record.levelno >= WARNING:
                self._error(record)
            elif event is None:
                self._note(record.getMessage())

    def _note(self, text: str) -> None:
        """What Snakemake and its executors say in plain text."""
        if text.startswith("Nothing to be done"):
            self._say("nothing to be done: everything is up to date")
        elif text.startswith("estimate: "):
            for line in text.splitlines():
                self._say(line)
        elif found := SUBMITTED.match(text):
            self.jobs[int(found["job"])].submitted(found["slurm"])
        elif found := RESTARTED.match(text):
            self._say(f"{self.jobs[int(found['job'])].title()}: trying again")

    def _error(self, record: LogRecord) -> None:
        """Errors of the workflow itself, on one line; those that repeat a failed job's stay in the log file."""
        text = record.getMessage()
        if text.startswith(ACCOUNTS) or (self.failed and any(repeated in text for repeated in REPEATED)):
            return
        if text.startswith("RuleException") and "CalledProcessError" in text:  # the job's own error follows
            return
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if OWN_ERROR.match(lines[0] if lines else ""):  # raised on purpose: where in the code does not matter
            lines = [line for line in lines[1:] if not line.startswith('File "')]
        elif lines and lines[0].startswith("Traceback"):  # all of it is in Snakemake's log
            lines = lines[-1:]
        elif found := PROTECTED.search(text):
            lines = [UNWRITABLE.format(found["file"])]
        self._say(" ".join(lines), error=record.levelno >= ERROR)

    def _run_info(self, record: LogRecord) -> None:
        stats: dict[str, Any] = dict(record.stats)  # type: ignore[attr-defined]
        self.total = stats.pop("total", sum(stats.values()))
        counts = ", ".join(f"{count} {rule}" for rule, count in stats.items() if rule != "all")
        self._say(f"{self.total} jobs: {counts}")
        self._record(done=self.done, total=self.total)

    def _job_info(self, record: LogRecord) -> None:
        values = record.__dict__
        wildcards = {key: str(value) for key, value in dict(values.get("wildcards") or {}).items()}
        outputs, logs = ([str(path) for path in values.get(key) or []] for key in ("output", "log"))
        job = _Job(values["rule_name"], wildcards, outputs, logs)
        self.jobs[values["jobid"]] = self.running[values["jobid"]] = job
        self._record(started=values["jobid"], **job.facts())
        if self.common_settings.dryrun:
            reasons = [part.split(":")[0].strip().lower() for part in str(values.get("reason") or "").split(";")]
            self._say(f"{job.title()} ({', '.join(reasons)})")

    def _job_finished(self, number: int) -> None:
        job = self.running.pop(number, None)
        if job is not None and job.rule in MILESTONES:
            found = last_said(job.logs).removeprefix("done: ")
            self._say(f"{job.name(MILESTONES)}: {found}")

    def _job_error(self, record: LogRecord) -> None:
        number = record.__dict__.get("jobid", record.__dict__.get("job_id"))
        job = self.jobs.get(number)  # type: ignore[arg-type]
        self.running.pop(number, None)  # type: ignore[arg-type]
        self.failed = True
        if job is None:
            self._say(record.getMessage(), error=True)
            return
        logs = [str(log) for log in record.__dict__.get("log") or []]
        facts = [f"SLURM job {job.slurm}"] * bool(job.slurm) + [f"log: {', '.join(logs)}"] * bool(logs)
        where = f" ({'; '.join(facts)})" if facts else ""
        cause = job.cause(record.__dict__.get("rule_msg") or "", logs)
        self._record(failed=number, **job.facts())
        for line in [error for error in errors_at_the_end(job.logs) if error != cause]:
            self._say(f"{job.title()}: {line}", error=True)
        self._say(f"{job.title()}: {cause}{where}", error=True)

    def _beat(self) -> None:
        """Say what runs whenever nothing was said for a while; ever less often while it stays the same."""
        before, patience = "", HEARTBEAT_SECONDS
        while not self.stopping.wait(1.0):
            with self.guard:
                silence = time.monotonic() - self.spoke
                if silence < HEARTBEAT_SECONDS or not self.running:
                    continue
                now = self._doing()
                if not now or (now == before and silence < patience):
                    continue
                patience = min(2 * patience, LONGEST_SILENCE_SECONDS) if now == before else HEARTBEAT_SECONDS
                before = now
                self._say(now)

    def _doing(self) -> str:
        """What the running jobs do; nothing if none has anything to say."""
        doing = []
        for job in self.running.values():
            said = job.last_line()
            if job.rule in DOING and not said.startswith(("done: ", "error: ")):
                doing.append(f"{job.name(DOING)} {said or job.waiting()}")
        more = [f"and {len(doing) - SHOWN} more"] if len(doing) > SHOWN else []
        return " | ".join(doing[:SHOWN] + more)

    def _say(self, text: str, error: bool = False) -> None:
        self.spoke = time.monotonic()
        seconds = int(time.monotonic() - self.started)
        share = f" {self.done / self.total:4.0%}" if self.total and not self.common_settings.dryrun else ""
        clock = f"[{seconds // 60:2d}:{seconds % 60:02d}{share}]"
        color = error and sys.stderr.isatty() and not self.common_settings.nocolor
        line = f"{clock} {text}"
        print(f"\033[31m{line}\033[0m" if color else line, file=sys.stderr, flush=True)

    def _record(self, **event: Any) -> None:
        """Write an event for `effopd status`, beside Snakemake's own log where it keeps one (it does not in a dry run).

        What cannot be written is missing there, and nowhere else.
        """
        with suppress(OSError):
            if self.events is None:
                logs = [Path(h.baseFilename) for h in snakemake_logger.handlers if isinstance(h, FileHandler)]
                self.events = events_beside(logs[0]).open("a", encoding="utf-8") if logs else None
            if self.events is not None:
                self.events.write(json.dumps(event) + "\n")
                self.events.flush()

    def close(self) -> None:
        self.stopping.set()
        if self.events is not None:
            with suppress(OSError):
                self.events.close()
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
