"""Labels, groups and sources are a person's words: tables, figures and pages show them and are not changed by them."""

from __future__ import annotations

import itertools
import json
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.artifacts.manifests import write_text
from effopd.common.errors import ArtifactError
from effopd.common.formatting import printable
from effopd.report.table_columns import NAMES
from effopd.report.tables import read_csv, read_parquet, write_csv
from effopd.specs.read import read_spec
from effopd.specs.reports import PlotFigure
from effopd.stages.collect_run import collect_run
from effopd.stages.make_tables import make_tables
from effopd.stages.plot_figure import plot_figure
from effopd.stages.write_explorer import explorer_data, write_explorer
from effopd.stages.write_report import write_report
from effopd.workflow.job_specs import Plan
from small_results import CONFIG, SmallResults

WORDS = [
    "<!--<script>", "</script><script>alert(1)</script>", "-->", "]]>", "&amp; &lt;", '" onload="x', "'", "{{ 1 }}",
    "$\\frac$ $x$", "a $ b", "\\$5", "_hidden", 'id="figure_1" url(#p1) href="#x"', "🙂 é \u2028 \u202e", "=1+1",
    "'=1+1", "''+x", "-lr", "@home", "+replay", "NA", "None", "nan", "null", "", "1e5", "007", "1,5", 'a "b"', " x ",
]  # fmt: skip
LABELS = [word for word in WORDS if word.isprintable() and word.strip()]  # those that the configuration allows
CONTROLS = ["\0", "\x1b[2J", "a\nb", "a\rb", "\ud800", "\ufffe", "\x85", "\t"]


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [WORDS, [word for word in WORDS if word]])
def test_tables_give_back_what_was_written(tmp_path, words):
    table = pd.DataFrame({"run": words, "group": words[::-1], "value": np.arange(len(words)) / 3, "seed": 1})
    table.loc[1, "value"] = np.nan
    write_csv(tmp_path / "t.csv", table, digits=None)
    found = read_csv(tmp_path / "t.csv")
    pd.testing.assert_frame_equal(found.fillna({"run": "", "group": ""}), table, check_dtype=False)
    assert found["seed"].dtype == "int64"


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1, max_size=4))
def test_any_name_comes_back(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    write_csv(path, pd.DataFrame({"source": names, "accuracy": 0.5}))
    assert read_csv(path)["source"].tolist() == names


@pytest.mark.parametrize("word", WORDS)
def test_no_cell_is_a_formula(tmp_path, word):
    write_csv(tmp_path / "t.csv", pd.DataFrame({name: [word] for name in NAMES} | {"difference": [-0.5]}))
    *names, difference = pd.read_csv(tmp_path / "t.csv", header=None, dtype=str, keep_default_na=False).loc[1]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in names)
    assert difference == "-0.5", "a number stays one"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\0", b'a,b\n1,2,3\n"x', "folder"])
def test_a_table_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "t.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    for read in (read_csv, read_parquet):
        with pytest.raises(ArtifactError, match=r"t\.csv"):
            read(path)


# --- figures and pages ------------------------------------------------------------------------------------------------


class Hostile(SmallResults):
    """Whose models answer with the words, and whose problems and verdicts are made of them."""

    words = " | ".join([*LABELS, *(word for word in CONTROLS if word != "\ud800")])

    def sample(self, name, row):
        short, whole = self.words[: 10 * row], f"{self.words}\n{self.words}"
        return replace(super().sample(name, row), problem=whole, answer=short, completion=whole, reason=short)


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> SmallResults:
    """A results folder whose runs have a word each as label and as group; with its tables and figures."""
    pairs = itertools.zip_longest(LABELS[::2], LABELS[1::2], fillvalue="x")
    runs = {f"run{n}": {"label": label, "group": group} for n, (label, group) in enumerate(pairs)}
    runs["na"] = {"label": "the baseline", "extrapolation": {"triggers": "none"}}
    config = {**CONFIG, "runs": runs, "evaluation": {"baseline": "na"}, "dynamics": {"enabled": False}}
    small = Hostile(tmp_path_factory.mktemp("told") / "results", config)
    plan = small.make()
    for run in plan.runs:
        out = small.results / f"runs/{run}/seed0/metrics.parquet"
        collect_run(read_spec("collect_run", plan.spec("collect_run", run=run, seed=0)), out.parent, out)
    make_tables(read_spec("make_tables", plan.spec("make_tables")), small.results, small.results / "tables")
    for figure in plan.figures():
        out = small.results / f"figures/{figure}.svg"
        if figure == "speedups":
            plot_figure(figure_spec(plan, figure), small.results, out)
        else:
            write_text(out, "<svg></svg>")
    return small


def figure_spec(plan: Plan, figure: str) -> PlotFigure:
    spec = read_spec("plot_figure", plan.spec("plot_figure", figure=figure))
    return replace(spec, options=replace(spec.options, dpi=10))


def texts(svg: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("figure", ["speedups", pytest.param("ablations", marks=pytest.mark.slow)])
def test_figures_show_every_word_as_it_is(told, tmp_path, figure):
    out = told.results / f"figures/{figure}.svg"
    if figure == "ablations":
        out = tmp_path / out.name
        plot_figure(figure_spec(told.plan, figure), told.results, out)
    found = {text.strip() for text in texts(out)}
    wanted = {word.strip() for word in LABELS}
    assert wanted <= found, wanted - found


def test_control_characters_make_no_figure_invalid(told, tmp_path):
    spec = figure_spec(told.plan, "speedups")
    labels = {**spec.labels, **{f"run{number}": f"a{word}b" for number, word in enumerate(CONTROLS)}}
    groups = [*spec.groups]
    for number, word in enumerate(CONTROLS):
        groups[number] = (f"g{word}h", groups[number][1])
    plot_figure(replace(spec, labels=labels, groups=groups), told.results, tmp_path / "figure.svg")
    assert any("a\\x1b[2Jb" in text for text in texts(tmp_path / "figure.svg"))


class Page(HTMLParser):
    """The tags of a page, in order, and its text; the content of its script with data apart."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text, self.data = "", ""
        self._in_data = False
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in_data = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self._in_data = False

    def handle_data(self, data):
        self.text += data
        self.data += data if self._in_data else ""


def test_the_report_shows_every_word_and_no_tag_of_theirs(told):
    plan = told.plan
    spec = read_spec("write_report", plan.spec("write_report"))
    write_report(spec, told.results, told.results / "report.html")
    page = Page(told.results / "report.html")
    for settings_ in spec.config["runs"].values():
        settings_["label"] = "plain"
    write_report(spec, told.results, told.results / "plain.html")
    assert page.tags == Page(told.results / "plain.html").tags
    assert all(word in page.text for word in LABELS), [word for word in LABELS if word not in page.text]
    assert "speedups-p1" not in page.text, "what looks like an id is text"


def test_the_report_shows_every_completion_as_text(told):
    """That is, the tags are those of a page of the same texts without their special characters."""
    spec = read_spec("write_report", told.plan.spec("write_report"))
    write_report(spec, told.results, told.results / "report.html")
    page = Page(told.results / "report.html")
    assert all(word in page.text for word in LABELS)
    shown = printable(f"{Hostile.words}\n{Hostile.words}")
    assert page.text.count(shown) == 2 * (1 + len(spec.samples)), "problems and completions"
    assert "\\x1b[2J" in page.text
    assert all(character.isprintable() or character == "\n" for character in page.text)
    plain = "".join("x" if character in "<>&'\"" else character for character in Hostile.words)
    harmless = SmallResults(told.results.with_name("harmless"), told.config)
    harmless.sample = lambda name, row: replace(
        SmallResults.sample(harmless, name, row),
        problem=f"{plain}\n{plain}",
        answer="x",
        completion=f"{plain}\n{plain}",
    )
    harmless.make()
    for name in ("tables", "figures"):
        shutil.copytree(told.results / name, harmless.results / name)
    write_report(spec, harmless.results, harmless.results / "report.html")
    tags = Page(harmless.results / "report.html").tags
    assert Counter(page.tags) == Counter(tags)


@pytest.mark.parametrize("word", [*WORDS, *CONTROLS])
def test_no_word_ends_the_data_of_the_explorer(tmp_path, word):
    folder = tmp_path / "results/dynamics/opd/seed0"
    folder.mkdir(parents=True)
    row = {
        "parameter": "q",
        "layer": 0,
        "module": "q",
        "step": 1,
        "elements": 4,
        "frobenius_norm": 1.0,
        "base_norm": 2.0,
    }
    pd.DataFrame([row]).to_parquet(folder / "norms.parquet")
    (folder / "weight_analysis.json").touch()
    content = {"runs": ["opd"], "groups": [["main", ["opd"]]], "seeds": [0], "labels": {"opd": word}, "models": [],
               "baseline": "opd", "template": ""}  # fmt: skip
    spec = read_spec("write_explorer", content)
    write_explorer(spec, tmp_path / "results", tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert json.loads(page.data) == explorer_data(spec, tmp_path / "results")
    assert json.loads(page.data)["subjects"][0]["name"] == f"{word}, seed 0"
    assert page.tags.count("script") == 2
