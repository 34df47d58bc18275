"""The report's sample completions: whose, in which order, how they are marked and cut, and how a browser shows them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from browser import CHROMIUM, DRIVER, opened
from effopd.artifacts.manifests import write_text
from effopd.common.errors import ArtifactError
from effopd.report.samples import LINE, WHOLE, samples_section
from effopd.specs.read import read_spec
from effopd.stages.collect_run import collect_run
from effopd.stages.make_tables import make_tables
from effopd.stages.write_report import write_report
from effopd.workflow.job_specs import Plan
from small_results import CONFIG, SmallResults

STEPS = {"steps": 16, "checkpoint_steps": [1, 2, 4, 8]}
RUNS = {
    "effopd": {"label": "jumping <b>"},
    "plain": {"extrapolation": {"triggers": "none"}, "training": {"checkpoint_steps": [2]}},
    "aside": {"group": "asides", "extrapolation": {"triggers": "none"}},
}
WORDS = "so that is\n  the <answer> & 'its' \x1b[2J reason, once more "


class Told(SmallResults):
    """A right answer of the teacher, a cut one after the first step, a partly right one of the second run."""

    def sample(self, name, row):
        found = super().sample(name, row)
        if name == "effopd/seed0/1":
            return replace(found, completion=WORDS * 200, finished=False, tokens=12_345, reward=0.0)
        return replace(found, reward={"models/teacher": 1.0, "plain/seed0/16": 0.5}.get(name, found.reward))


@pytest.fixture(scope="module")
def config():
    return {**CONFIG, "runs": RUNS, "training": {**CONFIG["training"], **STEPS}, "dynamics": {"enabled": False}}


@pytest.fixture(scope="module")
def results(tmp_path_factory, config) -> Path:
    folder = tmp_path_factory.mktemp("report") / "results"
    Told(folder, config).make()
    return folder


def section(results, plan):
    spec = read_spec("write_report", plan.spec("write_report"))
    return samples_section(plan.config, spec.samples, results)


def test_base_runs_of_the_main_group_over_their_steps_and_teacher(results, config):
    first, second = section(results, Plan(config))
    assert [problem["row"] for problem in (first, second)] == [1, 4]
    assert (first["title"], first["text"], first["answer"]) == ("1+0=", "1+0=", "1")
    steps = Plan(config).boundaries("effopd")
    assert len(steps) > 3
    for problem in (first, second):
        assert [(row["name"], row["step"]) for row in problem["rows"]] == [
            ("base (model)", ""),
            *(("jumping <b>", step) for step in (steps[0], steps[len(steps) // 2], steps[-1])),
            *(("plain", step) for step in (2, 16)),
            ("teacher (model)", ""),
        ]
    verdicts = [(row["verdict"], row["mark"]) for row in second["rows"]]
    assert verdicts == [
        ("wrong", "wrong"), ("wrong, cut off", "wrong"), ("wrong", "wrong"), ("wrong", "wrong"), ("wrong", "wrong"),
        ("partly right (0.5)", "partly"), ("right", "right"),
    ]  # fmt: skip
    assert [row["verdict"] for row in first["rows"]][:2] == ["right", "wrong, cut off"]


def test_long_texts_are_cut_where_they_are_shown_and_short_ones_stand_once(results, config):
    rows = section(results, Plan(config))[0]["rows"]
    assert (rows[0]["start"], rows[0]["text"]) == ("1", None)
    assert len(rows[1]["start"]) == LINE
    assert rows[1]["start"].startswith("so that is the <answer> & 'its' \\x1b[2J reason, once more so that")
    assert len(rows[1]["text"]) == WHOLE
    assert rows[1]["text"].startswith("so that is\n  the <answer>")
    assert rows[1]["text"].endswith("…")
    assert rows[1]["tokens"] == "12,345"


@pytest.mark.parametrize("change", [{"evaluation": {"baseline": "effopd", "kept_samples": 0}}, {}])
def test_there_is_no_section_where_nothing_is_kept(results, config, change, tmp_path):
    plan = Plan({**config, **change})
    copy = shutil.copytree(results / "evaluation", tmp_path / "evaluation")
    if change:
        assert section(tmp_path, plan) == []
        return
    assert section(tmp_path, plan)
    (copy / "effopd/seed0/1.samples.parquet").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"effopd/seed0/1\.samples\.parquet is truncated or altered"):
        section(tmp_path, plan)


@pytest.fixture(scope="module")
def page(results, config) -> Path:
    plan = Plan(config)
    for run in plan.runs:
        out = results / f"runs/{run}/seed0/metrics.parquet"
        collect_run(read_spec("collect_run", plan.spec("collect_run", run=run, seed=0)), out.parent, out)
    make_tables(read_spec("make_tables", plan.spec("make_tables")), results, results / "tables")
    for figure in plan.figures():
        write_text(results / f"figures/{figure}.svg", "<svg></svg>")
    write_report(read_spec("write_report", plan.spec("write_report")), results, results / "report.html")
    return results / "report.html"


def test_the_page_holds_them_escaped(page):
    text = page.read_text()
    assert "\x1b" not in text
    assert "&lt;answer&gt; &amp; &#39;its&#39; \\x1b[2J" in text
    assert '<span class="partly">partly right (0.5)</span>' in text


@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs Chromium and its driver")
def test_a_browser_shows_them_by_word_and_color(page, tmp_path):
    with opened(page, tmp_path / "profile") as browser:
        assert browser.console() == []
        assert browser.run("return [...document.querySelectorAll('.problem')].map(e => e.open)") == [True, False]
        browser.run("document.querySelector('#samples').scrollIntoView()")
        colors = browser.run(
            "return ['right', 'partly', 'wrong'].map(m => getComputedStyle(document.querySelector('.' + m)).color)"
        )
        assert len({*colors}) == 3
        row = ".problem tbody tr:nth-child(2)"
        hidden = f"return document.querySelector('{row} pre').checkVisibility()"
        browser.click(f"{row} summary")
        assert browser.run(hidden) is True
        wide = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        shown, there = browser.run(wide)
        assert shown <= there, "the page is no wider than the window"
        shot = tmp_path / "samples.png"
        browser.screenshot(shot)
        assert shot.stat().st_size > 10_000
