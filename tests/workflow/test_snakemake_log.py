"""What jobs do is read alike from what our logger plugin writes and from the log that Snakemake keeps itself."""

import logging
import os
from types import SimpleNamespace

import pytest
from snakemake.logging import DefaultFormatter, logger
from snakemake_interface_logger_plugins.common import LogEvent

from effopd.workflow.snakemake_log import Job, events_beside, jobs_of
from snakemake_logger_plugin_effopd import LogHandler

SETTINGS = SimpleNamespace(dryrun=False, printshellcmds=False, nocolor=True)


@pytest.fixture
def log(tmp_path):
    """Snakemake's own log, while it and the plugin are told of what happens."""
    path = tmp_path / "2026-12-01.snakemake.log"
    own, plugin, level = logging.FileHandler(path), LogHandler(SETTINGS, None), logger.level
    own.setFormatter(DefaultFormatter(None))
    own.addFilter(lambda record: record.event != LogEvent.SHELLCMD)
    logger.setLevel(logging.INFO)
    for handler in (own, plugin):
        logger.addHandler(handler)
    yield path
    for handler in (own, plugin):
        logger.removeHandler(handler)
        handler.close()
    logger.setLevel(level)


def say(event, **facts):
    logger.log(logging.ERROR if event == LogEvent.JOB_ERROR else logging.INFO, "", extra={"event": event, **facts})


def files_of(step):
    return {
        "output": [f"results/runs/opd/seed0/state/{step}/state.json", "beside.json"],
        "log": [f"logs/train_segment/opd.seed0.{step}.log"],
    }


def start(number, step, part=""):
    say(
        LogEvent.JOB_INFO, jobid=number, rule_name="train_segment", rule_msg=None, local=False, input=["x"], benchmark=None,
        wildcards={"run": "opd", "seed": "0", "step": str(step), "part": part}, reason="Missing", resources={}, priority=0,
        threads=1, indent=False, is_checkpoint=False, printshellcmd=False, is_handover=False, shellcmd="effopd", **files_of(step),
    )  # fmt: skip


def fail(number, step):
    say(
        LogEvent.JOB_ERROR, jobid=number, rule_name="train_segment", rule_msg=None, input=["x"], conda_env=None, shellcmd="effopd",
        container_img=None, aux={}, indent=False, **files_of(step),
    )  # fmt: skip


def finish(number, done):
    logger.info(
        f"Finished jobid: {number} (Rule: train_segment)", extra={"event": LogEvent.JOB_FINISHED, "job_id": number}
    )
    say(LogEvent.PROGRESS, done=done, total=7)


def expected(step, *, part=()):
    return Job(
        "train_segment", ["opd", "0", str(step), *part], **{f"{key}s": files for key, files in files_of(step).items()}
    )


def test_both_logs_say_the_same_at_every_moment(log):
    def now():
        events = events_beside(log)
        read = jobs_of(log)
        aside = events.rename(events.with_suffix(".aside"))
        assert jobs_of(log) == read, "Snakemake's own log says otherwise"
        aside.rename(events)
        return read.done, read.running, read.failed

    logger.info("Job stats:\njob  count\ntotal  7", extra={"event": LogEvent.RUN_INFO, "stats": {"train_segment": 7}})
    assert jobs_of(log).total == 7
    start(3, 1)
    start(4, 2, part=".shard0of2")
    both = {3: expected(1), 4: expected(2, part=[".shard0of2"])}
    assert now() == (0, both, {})
    finish(3, done=1)
    assert now() == (1, {4: both[4]}, {})
    fail(4, 2)
    assert now() == (1, {}, {4: both[4]})
    start(4, 2, part=".shard0of2")
    assert now() == (1, {4: both[4]}, {}), "what is tried again has not failed"


def test_a_line_torn_by_a_kill_is_passed_over(log):
    start(3, 1)
    start(4, 2)
    events = events_beside(log)
    events.write_bytes(events.read_bytes()[:-20])
    assert jobs_of(log).running == {3: expected(1)}


def test_without_snakemakes_own_log_nothing_is_written(caplog):
    """As in a dry run, and in the job of a cluster."""
    caplog.set_level(logging.INFO, logger=logger.name)
    plugin = LogHandler(SETTINGS, None)
    logger.addHandler(plugin)
    try:
        start(3, 1)
        assert plugin.running
        assert plugin.events is None
    finally:
        logger.removeHandler(plugin)
        plugin.close()


@pytest.mark.parametrize(
    "line",
    [
        '{"started": [1], "rule": "x"}', '{"started": 5}', '{"started": 5, "rule": 7}', '{"finished": "x"}', "[" * 200_000,
        '{"failed": 5, "rule": "x", "wildcards": "abc", "logs": null}', '{"failed": 5, "rule": "x", "outputs": [1]}', "3",
        '{"done": "a", "total": null}', '{"done": NaN, "total": 1e999}', "[]", "null", '{"started": 1e999, "rule": "x"}',
    ],
)  # fmt: skip
def test_a_line_that_the_plugin_does_not_write_is_passed_over(log, line):
    start(3, 1)
    before = jobs_of(log)
    with events_beside(log).open("a") as events:
        events.write(f"{line}\n")
    start(4, 2)
    after = jobs_of(log)
    assert (after.done, after.total, after.failed) == (before.done, before.total, {})
    assert after.running == {3: expected(1), 4: expected(2)}


def test_what_a_later_version_says_besides_is_passed_over(log):
    start(3, 1)
    events = events_beside(log)
    events.write_text(events.read_text().replace('"rule"', '"more": {"a": 1}, "rule"'))
    assert jobs_of(log).running == {3: expected(1)}


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text(""), lambda path: path.mkdir(), lambda path: os.mkfifo(path)]
)
def test_without_lines_of_the_plugin_snakemakes_own_log_is_read(log, make):
    start(3, 1)
    events_beside(log).unlink()
    make(events_beside(log))
    assert jobs_of(log).running == {3: expected(1)}
