"""`effopd samples`: whose completions it shows, in which order, how it prints them, and what it refuses."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import effopd
from effopd.artifacts.manifests import read_json, read_manifest, write_manifest
from effopd.common.errors import ArtifactError, UserError
from effopd.evaluation.sample_files import SCHEMA, SUFFIX, Sample, read_samples, write_samples
from effopd.results.samples import Wanted, describe, samples
from small_results import CONFIG, SmallResults

HOSTILE = "7\nteacher: right\r\x1b[2J\0\u2028\u202e<b>" + "x" * 300
RUNS = {"effopd": {}, "plain": {"extrapolation": {"triggers": "none"}, "training": {"checkpoint_steps": [2]}}}


class Told(SmallResults):
    def sample(self, name: str, row: int) -> Sample:
        found = super().sample(name, row)
        return replace(found, completion=HOSTILE, finished=False) if (name, row) == ("effopd/seed0/2", 4) else found


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "results"
    Told(folder, {**CONFIG, "runs": RUNS}).make()
    return folder


@pytest.fixture
def copy(results, tmp_path) -> Path:
    return shutil.copytree(results, tmp_path / "results")


def shown(found, row=1):
    (problem,) = [problem for problem in found["problems"] if problem["row"] == row]
    return [(sample["of"], sample["role"], sample["step"]) for sample in problem["samples"]]


BASE, TEACHER = ("base", "student", None), ("teacher", "teacher", None)
EFFOPD = [("effopd", "run", 1), ("effopd", "run", 2)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Wanted(), [BASE, *EFFOPD, ("plain", "run", 2), TEACHER]),
        (Wanted(runs=("effopd",)), [BASE, *EFFOPD, TEACHER]),
        (Wanted(runs=("plain", "effopd", "plain")), [BASE, ("plain", "run", 2), *EFFOPD, TEACHER]),
        (Wanted(steps=(1,)), [BASE, EFFOPD[0], TEACHER]),
        (Wanted(models=("teacher",), steps=(2,)), [("teacher", "model", None), EFFOPD[1], ("plain", "run", 2)]),
        (Wanted(seed=0, problem=1), [BASE, *EFFOPD, ("plain", "run", 2), TEACHER]),
    ],
)
def test_what_is_shown_and_in_which_order(results, wanted, expected):
    found = samples(results, wanted)
    assert shown(found) == expected
    assert [problem["row"] for problem in found["problems"]] == ([1] if wanted.problem == 1 else [1, 4])
    assert (found["not_evaluated"], found["without_samples"]) == ([], [])


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (Wanted(runs=("odp",)), "`--run`: .* has no run 'odp'. There is: effopd, plain."),
        (Wanted(models=("opd",)), "`--model`: .* has no model 'opd'. There is: base, teacher."),
        (Wanted(steps=(3,)), "`--step`: .* has no step 3. There is: 1, 2."),
        (Wanted(runs=("plain",), steps=(1,)), "has no step 1. There is: 2."),
        (Wanted(seed=7), "has no seed 7. There is: 0."),
        (Wanted(problem=0), "has no problem 0. There is: 1, 4."),
        (Wanted(task="other"), "has no task 'other'. There is: none."),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(results, wanted, line):
    with pytest.raises(UserError, match=line):
        samples(results, wanted)


def test_a_table_has_a_line_for_each_and_no_text_leaves_its_line(results):
    found = describe(samples(results, Wanted(problem=4)), full=False)
    assert found[:4] == [f"{results}: task arithmetic, seed 0", "", "problem 4: 4+0=", "reference answer: 4"]
    assert re.match(r"name +is a +step +verdict +tokens +completion$", found[4])
    assert len(found) == 5 + 5
    assert re.match(r"base +student +- +wrong +2 +3$", found[5])
    (hostile,) = [line for line in found if line.startswith("effopd") and "cut off" in line]
    assert hostile.isprintable()
    assert "wrong, cut off" in hostile
    assert hostile.endswith("x…")


def test_whole_texts_are_indented_and_cannot_pass_for_a_heading(results):
    found = "\n".join(describe(samples(results, Wanted(problem=4)), full=True))
    assert "\neffopd step 2 (run): wrong, cut off (it is 3), 2 tokens\n  prompt:\n    <bos>4+0=\n" in found
    assert "\n    teacher: right\\r\\x1b[2J\\x00\\u2028\\u202e<b>" + "x" * 300 in found
    assert [line for line in found.split("\n") if line.startswith("teacher")] == [
        "teacher (teacher): wrong (it is 3), 2 tokens"
    ]


def test_the_command_prints_plain_text_and_json_of_whole_texts(results):
    place = results.parent
    for words in ((), ("--full",), ("--json",)):
        said = effopd("samples", "results", *words, folder=place).succeeded()
        assert all(character.isprintable() or character == "\n" for character in said)
    assert said == effopd("samples", "--json", folder=place).succeeded(), "`results` is the default"
    whole = json.loads(said)
    assert whole == {**samples(results, Wanted()), "results": "results"}
    (text,) = [s["completion"] for p in whole["problems"] for s in p["samples"] if not s["finished"]]
    assert text == HOSTILE
    assert effopd("samples", "results", "--run", "effopd", "--step", "1", "--problem", "4", folder=place).succeeded()
    effopd("samples", "results", "--run", "odp\x1b[2J\n", folder=place).refused("There is: effopd, plain.")
    effopd("samples", "nowhere", folder=place).refused("no workflow has begun")


def test_what_is_not_evaluated_yet_is_said(copy):
    (copy / "evaluation/effopd/seed0/2.json").unlink()
    found = samples(copy, Wanted(runs=("effopd",)))
    assert shown(found) == [BASE, EFFOPD[0], TEACHER]
    assert describe(found, full=False)[-1] == "not evaluated yet: effopd step 2"
    shutil.rmtree(copy / "evaluation")
    with pytest.raises(UserError, match="nothing of this is evaluated yet in .*: base, effopd step 1, effopd step 2, "):
        samples(copy, Wanted())


def without_samples(path: Path, spec=None) -> None:
    """The same evaluation as a version made it that kept none, or that kept none on purpose."""
    entry = read_json(path)
    files = {name: path.with_name(name) for name in entry["files"] if not name.endswith(SUFFIX)}
    path.with_suffix("").with_name(f"{path.stem}{SUFFIX}").unlink()
    about = {"kind": "evaluation", "spec": {**entry["spec"], **(spec or {})}, "parents": entry["parents"]}
    if spec is None:
        about["spec"]["evaluation"] = {k: v for k, v in entry["spec"]["evaluation"].items() if k != "kept_samples"}
    write_manifest(path, **about, files=files, result=entry["result"], started=0)


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (None, "was made before samples were kept: run the workflow again"),
        ({"evaluation": {"kept_samples": 0}}, "`evaluation.kept_samples` is 0. Raise it"),
        ({"evaluation": ["odd"]}, "was made before samples were kept"),
    ],
)
def test_results_without_samples_say_why(copy, spec, line):
    paths = sorted(path for path in (copy / "evaluation").rglob("*.json"))
    without_samples(copy / "evaluation/effopd/seed0/1.json", spec)
    assert (
        describe(samples(copy, Wanted()), full=False)[-1] == f"without samples: {copy}/evaluation/effopd/seed0/1.json"
    )
    for path in paths:
        if path != copy / "evaluation/effopd/seed0/1.json":
            without_samples(path, spec)
    with pytest.raises(UserError, match=line):
        samples(copy, Wanted())


def forged(path: Path, content: bytes | pa.Table) -> None:
    """Other samples, which the manifest knows."""
    file = path.with_name(f"{path.stem}{SUFFIX}")
    file.write_bytes(content) if isinstance(content, bytes) else pq.write_table(content, file)
    entry = read_json(path)
    files = {name: path.with_name(name) for name in entry["files"]}
    about = {name: entry[name] for name in ("kind", "spec", "parents", "result")}
    write_manifest(path, **about, files=files, started=0)


ROW = asdict(Sample(1, "1+0=", "1", "1+0=", "1", 1.0, "right", 2, True))


def table(schema=SCHEMA, **changes) -> pa.Table:
    return pa.Table.from_pylist([{**ROW, **changes}], schema=schema)


def typed(name, kind) -> pa.Schema:
    return SCHEMA.set(SCHEMA.get_field_index(name), pa.field(name, kind))


NOT_UTF8 = pa.array([b"\xff"]).cast(pa.string(), safe=False)
FORGED = {
    "nothing": (b"", ""),
    "no parquet": (b"PAR1 and more PAR1", ""),
    "a column less": (table().drop_columns("reason"), "its columns are others"),
    "a column more": (table().append_column("more", pa.array([1])), "its columns are others"),
    "a number for a text": (table(typed("completion", pa.int64()), completion=3), "its columns are others"),
    "a text for a number": (table(typed("reward", pa.string()), reward="1"), "its columns are others"),
    "no text": (table(completion=None), "its columns are others"),
    "no verdict": (table(finished=None), "its columns are others"),
    "bytes": (table().set_column(4, SCHEMA.field(4), NOT_UTF8), "utf-8"),
    "NaN": (table(reward=float("nan")), "a reward is no number"),
    "infinite": (table(reward=float("inf")), "a reward is no number"),
}


def test_what_is_forged_well_is_read(copy):
    path = copy / "evaluation/effopd/seed0/2.json"
    forged(path, table())
    assert read_samples(read_manifest(path)) == [Sample(**ROW)]


@pytest.mark.parametrize("name", FORGED)
def test_a_file_that_holds_no_samples_is_refused_in_one_line(copy, name):
    content, reason = FORGED[name]
    forged(copy / "evaluation/effopd/seed0/2.json", content)
    line = effopd("samples", "results", folder=copy.parent).refused("2.samples.parquet holds no samples", reason)
    assert "Delete results/evaluation/effopd/seed0/2.json" in line


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_a_damaged_file_is_refused(copy, damage):
    file = copy / f"evaluation/effopd/seed0/2{SUFFIX}"
    raw = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes(raw[:-1] if damage == "cut" else bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(ArtifactError, match=r"2\.samples\.parquet is (missing|truncated|altered)"):
        read_samples(read_manifest(file.with_name("2.json")))
    effopd("samples", "results", folder=copy.parent).refused("2.samples.parquet")


ANY = st.text(st.characters(), max_size=40)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ANY, ANY, ANY, ANY, ANY), min_size=1, max_size=3))
def test_any_text_comes_back_and_prints_safely(tmp_path_factory, texts):
    """Halves of surrogate pairs come back escaped: no file holds them."""
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    path, file = folder / "2.json", folder / f"2{SUFFIX}"
    told = [Sample(row, *four, 0.25, reason, 1, True) for row, (*four, reason) in enumerate(texts)]
    write_samples(file, told)
    write_manifest(path, kind="evaluation", spec={}, parents={}, files={file.name: file}, started=0)
    found = read_samples(read_manifest(path))
    for sample, (*four, reason) in zip(found, texts, strict=True):
        wanted = [text.encode("utf-8", "backslashreplace").decode() for text in (*four, reason)]
        assert [sample.problem, sample.answer, sample.prompt, sample.completion, sample.reason] == wanted
        assert sample.verdict == "partly right (0.25)"
        values = {"of": "opd", "role": "run", "step": 2, "verdict": sample.verdict, **vars(sample)}
        problem = {"row": sample.row, "problem": sample.problem, "answer": sample.answer, "samples": [values]}
        whole = {
            "results": "r",
            "task": "t",
            "seed": 0,
            "problems": [problem],
            "not_evaluated": [],
            "without_samples": [],
        }
        short = describe(whole, full=False)
        assert all(line.isprintable() and len(line) < 200 for line in short)
        assert len(short) == 6
        for line in "\n".join(describe(whole, full=True)).split("\n"):
            assert line.isprintable()
            assert line == "" or line.startswith(
                ("    ", "  prompt:", "  completion:", "r: ", "problem ", "reference ", "opd step 2 (run): ")
            )
