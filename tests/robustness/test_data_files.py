"""Data files as people have them: what can be read is read as written, the rest is left out and counted, or refused."""

from __future__ import annotations

import csv
import io
import json
from contextlib import chdir, redirect_stderr, suppress
from decimal import Decimal

import datasets  # noqa: F401 - imported once, before any fork
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import effopd, untouched
from effopd.common.errors import UserError
from effopd.specs.read import read_spec
from effopd.stages import make_data as stages
from effopd.tasks.base import build_task
from effopd.tasks.sources import rows_of, text_at

# As written; each must come out as it is. Among them what floats, Python's integers or spreadsheets would change.
ANSWERS = ["0010", "1.10", "1e400", "12345678901234567890123", "1/2", "-0", "+7", "1_000", "é", "½", "🙂", "NA", "None",
           "null", "9" * 5000, "0.1", "true", "1e-7", "٣", "\ufb01", "a\u2028b", "$\\frac{1}{2}$"]  # fmt: skip
NEITHER = "no problem or no answer"
UNBOXED = "an answer whose braces are not balanced, which no box can hold"


def rows_with(answers):
    return [{"question": f"Which is number {n}, é?", "answer": answer} for n, answer in enumerate(answers)]


def make_data(folder, columns=None, files=(), source=None, status="succeeded", words=(), where=None):
    """Make data of files. Returns what was kept (answers by question), the counts of what was not, and the log.

    What is to be refused is refused by the command itself; the rest is done without the tenth of a second of a fork.
    """
    columns = columns or {"problem": "question", "answer": "answer"}
    source = source or {"files": [str(file) for file in files]}
    test = {"split": "train", "where": where or {}, "columns": columns, **source}
    spec = {"task": {"name": "math", "seed": 0, "splits": {"test": {"sources": [test]}}}, "code": "x"}
    with untouched(folder):
        out = folder.parent / "out" / "manifest.json"
        out.unlink(missing_ok=True)
        if status == "refused":
            line = effopd("make-data", "--spec", json.dumps(spec), "--out", out, folder=folder).refused(*words)
            assert not out.exists()
            return line
        with chdir(folder), redirect_stderr(io.StringIO()) as log:
            stages.make_data(read_spec("make_data", spec), out)
        output = log.getvalue()
    facts = json.loads(out.read_text())["result"]["sources"][0]
    table = pd.read_parquet(out.with_name("test.parquet"))
    assert facts["kept"] == len(table)
    assert facts["rows"] == facts["kept"] + facts["filtered"] + sum(facts["unusable"].values())
    said = [line for line in output.splitlines() if "unusable and left out" in line]
    assert len(said) == bool(facts["unusable"])
    for reason, count in facts["unusable"].items():
        assert f"{count} {reason} (first: " in said[0]
    return dict(zip(table["problem"], table["answer"], strict=True)), facts["unusable"], output


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def csv_text(rows, ending="\r\n"):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator=ending)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def jsonl_text(rows, ending="\n"):
    return "".join(json.dumps(row, ensure_ascii=False) + ending for row in rows)


TEXTS = {"csv": csv_text, "jsonl": jsonl_text}
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "cp1252", "cp437"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", TEXTS)
def test_encodings_and_line_ends(folder, kind, encoding, ending):
    """Unicode in any form is read; rows in another encoding are left out if they hold more than ASCII."""
    rows = [{"question": f"{'Größe' if n % 3 == 0 else 'Size'} of {n}?", "answer": ANSWERS[n]} for n in range(8)]
    file = folder / f"a.{kind}"
    file.write_bytes(TEXTS[kind](rows, ending).encode(encoding))
    kept, unusable, _ = make_data(folder, files=[file])
    unicode = encoding.startswith("utf")
    assert kept == {row["question"]: row["answer"] for row in rows if unicode or row["question"].isascii()}
    assert unusable == ({} if unicode else {"`question` is not valid UTF-8": 3})


def parquet_of(types=None, **columns):
    return pa.table({name: pa.array(values, (types or {}).get(name)) for name, values in columns.items()})


def write_parquet(path, table):
    pq.write_table(table, path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder of csv", "folder of jsonl", "folder of parquet"])
def test_answers_arrive_as_written(folder, kind):
    rows = rows_with(ANSWERS)
    suffix = kind.split()[-1]
    file = folder / f"train.{suffix}"
    if suffix == "parquet":
        write_parquet(file, parquet_of(**{key: [row[key] for row in rows] for key in rows[0]}))
    else:
        file.write_text(TEXTS[suffix](rows), encoding="utf-8", newline="")
    source = {"dataset": "./"} if kind.startswith("folder") else None
    kept, unusable, _ = make_data(folder, files=[file], source=source)
    assert kept == {row["question"]: row["answer"] for row in rows}
    assert unusable == {}


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72 in all.\n#### 72", "72"), ("#### 1 #### 2,125 ", "2,125"), ("#### 1 \\boxed{3}", "3")],
)  # fmt: skip
def test_a_worked_solution_is_reduced_to_its_answer(folder, answer, reference):
    (folder / "a.jsonl").write_text(jsonl_text(rows_with([answer])))
    kept, _, _ = make_data(folder, files=[folder / "a.jsonl"])
    assert list(kept.values()) == [reference]


@pytest.mark.parametrize("kind", TEXTS)
def test_what_spreadsheets_show_for_failed_formulas_is_no_text(folder, kind):
    errors = ["#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#N/A", "#NUM!", "#NULL!", "#SPILL!", "Err:502", " #REF! "]
    kept_ones = ["#1", "#REF", "Err", "#NAME", "x #REF!", "#VALUE!x"]
    rows = [*rows_with([*kept_ones, *errors]), {"question": "#NAME?", "answer": "1"}]
    (folder / f"a.{kind}").write_text(TEXTS[kind](rows))
    kept, unusable, _ = make_data(folder, files=[folder / f"a.{kind}"])
    assert list(kept.values()) == kept_ones
    why = "is a spreadsheet's error, such as #REF!"
    assert unusable == {f"`answer` {why}": len(errors), f"`question` {why}": 1}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_numbers_of_json_arrive_as_written(folder, kind):
    numbers = ["1.10", "1e400", "-1E-400", "12345678901234567890123", "9" * 5000, "-0", "0.1000", "100", "2.0"]
    file = folder / "train.jsonl"
    file.write_text("".join(f'{{"question": "Number {n}?", "answer": {text}}}\n' for n, text in enumerate(numbers)))
    kept, unusable, _ = make_data(folder, files=[file], source={"dataset": "./"} if kind == "folder" else None)
    assert list(kept.values()) == ["0" if text == "-0" else text for text in numbers]
    assert unusable == {}


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        ([0.1, 2.5, 1e300, 1e-7, 3.0, 2.0**53, 123456789.125], pa.float64(), ["0.1", "2.5", "1e+300", "1e-07", "3", "9007199254740992.0", "123456789.125"]),
        ([0.1, 2.5, 16777216.0], pa.float32(), ["0.1", "2.5", "16777216"]),
        ([0.5, 2.0], pa.float16(), ["0.5", "2"]),
        ([2**63 - 1, -(2**63), 0], pa.int64(), ["9223372036854775807", "-9223372036854775808", "0"]),
        ([2**64 - 1], pa.uint64(), ["18446744073709551615"]),
        ([Decimal("1.10"), Decimal("-0.00")], pa.decimal128(5, 2), ["1.10", "0.00"]),
        ([Decimal(10) ** 60], pa.decimal256(70, 0), ["1" + "0" * 60]),
        ([b"0010", "é".encode()], pa.binary(), ["0010", "é"]),
        (["0010", "1.10"], pa.large_string(), ["0010", "1.10"]),
        (["0010", "1.10"], pa.dictionary(pa.int8(), pa.string()), ["0010", "1.10"]),
        ([True, False], pa.bool_(), ["True", "False"]),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_parquet_are_the_shortest_text_for_them(folder, values, kind, texts):
    questions = [f"Number {n}?" for n in range(len(values))]
    file = write_parquet(folder / "a.parquet", parquet_of({"answer": kind}, question=questions, answer=values))
    kept, unusable, _ = make_data(folder, files=[file])
    assert [text.replace("-0.00", "0.00") for text in kept.values()] == texts
    assert unusable == {}


GOOD = {"Good?": "1", "Also good?": "2"}
J1, J2 = (json.dumps({"question": q, "answer": a}).encode() + b"\n" for q, a in GOOD.items())
HEAD, C1, C2 = b"question,answer\n", b"Good?,1\n", b"Also good?,2\n"

# What stands between two good rows -> how many rows are left out, and why.
DAMAGED_LINES = {
    "not json": (b"question: x\n", {"not JSON: Expecting value": 1}),
    "cut off": (b'{"question": "x", "ans\n', {"not JSON: Unterminated string starting at": 1}),
    "two objects": (J1.strip() + J1, {"not JSON: Extra data": 1}),
    "a comma behind it": (J1.strip() + b",\n", {"not JSON: Extra data": 1}),
    "an array": (b"[" + J1.strip() + b"]\n", {"not a JSON object": 1}),
    "a number": (b"1\n", {"not a JSON object": 1}),
    "null": (b"null\nnull\n", {"not a JSON object": 2}),
    "a key twice": (b'{"question": "x", "answer": "1", "answer": "2"}\n', {"a JSON object with one key twice": 1}),
    "a key twice inside": (b'{"question": "x", "answer": "1", "y": {"a": 1, "a": 2}}\n', {"a JSON object with one key twice": 1}),
    "deep": (b'{"question": "x", "answer": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", {"JSON that is nested too deeply": 1}),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n", {"JSON that is nested too deeply": 1}),
    "lone surrogate": (b'{"question": "x \\ud800", "answer": "1"}\n', {"`question` is not valid UTF-8": 1}),
    "lone surrogate in the answer": (b'{"question": "x", "answer": "\\udfff"}\n', {"`answer` is not valid UTF-8": 1}),
    "surrogate bytes": (b'{"question": "x \xed\xa0\x80", "answer": "1"}\n', {"`question` is not valid UTF-8": 1}),
    "cut inside a character": (b'{"question": "x \xf0\x9f\x99", "answer": "1"}\n', {"`question` is not valid UTF-8": 1}),
    "zeros": (b"\0" * 4096 + b"\n", {"not JSON: Expecting value": 1}),
    "no answer": (b'{"question": "x", "answer": null}\n', {NEITHER: 1}),
    "blank answer": (b'{"question": "x", "answer": "  "}\n', {NEITHER: 1}),
    "NaN": (b'{"question": "x", "answer": NaN}\n', {NEITHER: 1}),
    "no question": (b'{"question": "", "answer": "1"}\n', {NEITHER: 1}),
    "nothing but a full stop": (b'{"question": "x", "answer": "$.$"}\n', {NEITHER: 1}),
    "an empty box": (b'{"question": "x", "answer": "so \\\\boxed{}"}\n', {NEITHER: 1}),
    "an open brace": (b'{"question": "x", "answer": "\\\\frac{1}{2"}\n', {UNBOXED: 1}),
    "a closing brace": (b'{"question": "x", "answer": "2}"}\n', {UNBOXED: 1}),
    "a backslash": (b'{"question": "x", "answer": "2\\\\"}\n', {UNBOXED: 1}),
    "no such key": (b'{"question": "x"}\n{"answer": "1"}\n', {"no `answer`": 1, "no `question`": 1}),
    "an empty object": (b"{}\n", {"no `question`": 1}),
    "a list": (b'{"question": "x", "answer": [1]}\n', {"`answer` is not text": 1}),
    "an object": (b'{"question": {"a": 1}, "answer": "1"}\n', {"`question` is not text": 1}),
    "blank lines": (b"\n  \n\r\n", {}),
    "a byte-order mark": (b"\xef\xbb\xbf", {}),
    "bytes in a column that is not read": (b'{"question": "Third?", "answer": "3", "note": "\xe9"}\n', {}),
    "a surrogate in a column that is not read": (b'{"question": "Third?", "answer": "3", "note": "\\ud800"}\n', {}),
    "a tab inside": (b'{"question": "A\tb?", "answer": "3"}\n', {}),
    "a zero inside": (b'{"question": "A\\u0000b?", "answer": "3"}\n', {}),
    "a huge value": (b'{"question": "Third?", "answer": "3", "note": "' + b"x" * 5_000_000 + b'"}\n', {}),
}  # fmt: skip
DAMAGED_CSV = {
    "short": (b"x\n", {"not as many values as there are columns": 1}),
    "long": (b"x,1,2\n", {"not as many values as there are columns": 1}),
    "a comma that is not quoted": (b"a, b?,1\nc, d?,2\n", {"not as many values as there are columns": 2}),
    "text behind a quote": (b'"x" y,1\n', {"not CSV: text between a closing quote and the next comma": 1}),
    "a quote inside": (b'"He said "hi" twice",1\n', {"not CSV: text between a closing quote and the next comma": 1}),
    "cp1252": (b"Gr\xf6\xdfe?,1\n", {"`question` is not valid UTF-8": 1}),
    "cp1252 in the answer": (b"x,\x80\n", {"`answer` is not valid UTF-8": 1}),
    "no answer": (b"x,\n", {NEITHER: 1}),
    "no question": (b',1\n"",2\n', {NEITHER: 2}),
    "blank lines": (b"\n\r\n", {}),
    "quoted": (b'"A ""b"", c\nd?",3\n', {}),
    "zeros": (b"A\0b?,3\n", {}),
    "a huge value": (b'"' + b"x" * 5_000_000 + b'",3\n', {}),
}
BETWEEN = [
    *(("jsonl", name, J1 + middle + J2, unusable) for name, (middle, unusable) in DAMAGED_LINES.items()),
    *(("csv", name, HEAD + C1 + middle + C2, unusable) for name, (middle, unusable) in DAMAGED_CSV.items()),
]


@pytest.mark.parametrize(("kind", "name", "content", "unusable"), BETWEEN, ids=[f"{c[0]} {c[1]}" for c in BETWEEN])
def test_a_damaged_row_is_left_out_and_counted(folder, kind, name, content, unusable):
    file = folder / f"a.{kind}"
    file.write_bytes(content)
    kept, found, output = make_data(folder, files=[file])
    assert found == unusable
    assert kept.items() >= GOOD.items()
    if unusable:
        assert kept == GOOD
        assert f"(first: {file}, line {3 if kind == 'csv' else 2})" in output


QUESTIONS = ["Good?", "x", "Also good?"]
DAMAGED_PARQUET = {
    "null": ({"answer": ["1", None, "2"]}, {NEITHER: 1}),
    "nan": ({"answer": [1.0, float("nan"), 2.0]}, {NEITHER: 1}),
    "null in an integer column": ({"answer": [1, None, 2]}, {NEITHER: 1}),
    "infinite": ({"answer": [1.0, None, 2.0]}, {NEITHER: 1}),
}


@pytest.mark.parametrize("name", DAMAGED_PARQUET)
def test_missing_values_of_parquet(folder, name):
    columns, unusable = DAMAGED_PARQUET[name]
    kept, found, _ = make_data(
        folder, files=[write_parquet(folder / "a.parquet", parquet_of(question=QUESTIONS, **columns))]
    )
    assert (kept, found) == (GOOD, unusable)


def test_text_of_parquet_that_is_not_unicode(folder):
    texts = pa.array([b"Good?", b"Gr\xf6\xdfe?", b"Also good?"]).view(pa.string())
    file = write_parquet(folder / "a.parquet", pa.table({"question": texts, "answer": ["1", "3", "2"]}))
    kept, unusable, output = make_data(folder, files=[file])
    assert kept == GOOD
    assert unusable == {"a value that Python cannot hold, such as text that is not UTF-8": 1}
    assert f"(first: {file}, row 2)" in output


NESTED = [
    ("final.0", [["1"], None, ["2"]], "no `final.0`"),
    ("final.0", [["1"], [], ["2"]], "no `final.0`"),
    ("final.0", [["1"], [None], ["2"]], NEITHER),
    ("final.-1", [["1"], None, ["0", "2"]], "no `final.-1`"),
    ("final.text", [{"text": "1"}, None, {"text": "2"}], "no `final.text`"),
    ("final.text", [{"text": "1"}, {"text": None}, {"text": "2"}], NEITHER),
    ("final.1.content", [[{"content": "0"}, {"content": "1"}], None, [{"content": "0"}, {"content": "2"}]], "no `final.1.content`"),
    ("final.1.content", [[{"content": "0"}, {"content": "1"}], [{"content": "0"}], [{"content": "0"}, {"content": "2"}]], "no `final.1.content`"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
@pytest.mark.parametrize(("column", "values", "reason"), NESTED)
def test_a_nested_value_that_one_row_lacks(folder, kind, column, values, reason):
    file = folder / ("train.parquet" if kind == "parquet" else "train.jsonl")
    if kind == "parquet":
        write_parquet(file, parquet_of(question=QUESTIONS, final=values))
    else:
        file.write_text(jsonl_text([{"question": q, "final": f} for q, f in zip(QUESTIONS, values, strict=True)]))
    columns = {"problem": "question", "answer": column}
    source = {"dataset": "./"} if kind == "folder" else None
    kept, unusable, _ = make_data(folder, columns, [file], source)
    assert (kept, unusable) == (GOOD, {reason: 1})


def test_a_nested_value_that_all_rows_lack(folder):
    file = folder / "a.jsonl"
    file.write_text(jsonl_text([{"question": question, "final": ["1"]} for question in QUESTIONS]))
    columns = {"problem": "question", "answer": "final.7.x"}
    words = ["the data has no column `final.7.x`. Set `columns` of the source to some of: question, final."]
    make_data(folder, columns, [file], status="refused", words=words)


REFUSED = {
    "empty.csv": (b"", ["none of its 0 rows is a problem"]),
    "header.csv": (HEAD, ["none of its 0 rows is a problem"]),
    "twice.csv": (b"question,answer,answer\nx,1,2\n", ["twice.csv has two columns named `answer`"]),
    "open.csv": (HEAD + C1 + b'"x,1\n' + C2 * 3, ["open.csv, line 3: a quoted value begins in this row and never ends"]),
    "open_header.csv": (b'"question,answer\nx,1\n', ["open_header.csv, line 1: a quoted value begins"]),
    "wrong_header.csv": (b'"question" x,answer\nx,1\n', ["wrong_header.csv, line 1: the column names are not CSV"]),
    "semicolons.csv": (b"question;answer\nx;1\n", ["no column `question`", "question;answer"]),
    "spaces.csv": (b"question, answer \nx,1\n", ["no column `answer`", "some of: question, ' answer '."]),
    "no_header.csv": (C1 + C2, ["no column `question`", "Good?, 1"]),
    "cp1252.csv": ("Größe,answer\nx,1\n".encode("cp1252"), ["no column `question`"]),
    "zip.csv": (b"PK\x03\x04" + bytes(range(256)) * 20, []),
    "empty.jsonl": (b"", ["none of its 0 rows is a problem"]),
    "blank.jsonl": (b"\n\n", ["none of its 0 rows is a problem"]),
    "array.jsonl": (b"[" + J1.strip() + b"]", ["1 not a JSON object (first: ", "array.jsonl, line 1)"]),
    "pretty.jsonl": (json.dumps([{"question": "x", "answer": "1"}], indent=1).encode(), ["not JSON", "pretty.jsonl, line 1)"]),
    "text.jsonl": (b"What is this?\nNo data.\n", ["2 not JSON: Expecting value (first: ", "text.jsonl, line 1)"]),
    "other.jsonl": (b'{"a": 1}\n', ["no column `question`", "some of: a."]),
    "wide.jsonl": (json.dumps({f"column{n}": n for n in range(5000)}).encode(), ["no column `question`", "..."]),
    "lists.jsonl": (b'{"question": "x", "answer": [1]}\n', ["`answer` holds a list, not text. Name a part of it, such as `answer.0`"]),
    "gz.jsonl": (b"\x1f\x8b\x08\x00" + bytes(range(256)), ["not JSON"]),
    "zeros.jsonl": (bytes(10000), ["none of its"]),
    "empty.parquet": (b"", ["empty.parquet is not a readable parquet file"]),
    "text.parquet": (HEAD + C1, ["text.parquet is not a readable parquet file"]),
    "magic.parquet": (b"PAR1" * 100, ["magic.parquet is not a readable parquet file"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_a_usable_row_is_one_clear_line(folder, name):
    content, words = REFUSED[name]
    (folder / name).write_bytes(content)
    make_data(folder, files=[folder / name], status="refused", words=words)


@pytest.mark.parametrize("kept_bytes", [0.1, 0.5, 0.9, 0.99])
def test_parquet_that_is_cut_off(folder, kept_bytes):
    whole = write_parquet(folder / "a.parquet", parquet_of(question=QUESTIONS * 200, answer=["1"] * 600)).read_bytes()
    cut = int(len(whole) * kept_bytes)
    (folder / "a.parquet").write_bytes(whole[:cut])
    make_data(folder, files=[folder / "a.parquet"], status="refused", words=["is not a readable parquet file"])


def test_parquet_with_two_columns_of_one_name(folder):
    table = pa.table([["x"], ["1"], ["2"]], names=["question", "answer", "answer"])
    write_parquet(folder / "a.parquet", table)
    make_data(folder, files=[folder / "a.parquet"], status="refused", words=["two columns named `answer`"])


def test_a_folder_whose_files_only_the_library_can_read(folder):
    (folder / "train.json").write_text(json.dumps([{"question": "Good?", "answer": "1"}]))
    assert make_data(folder, source={"dataset": "./"})[0] == {"Good?": "1"}
    (folder / "train.json").write_text("{broken")
    make_data(folder, source={"dataset": "./"}, status="refused", words=["the data set ./ cannot be read ("])


def test_several_files_are_read_behind_a_damaged_row(folder):
    (folder / "a.jsonl").write_bytes(J1 + b"?\n")
    (folder / "b.jsonl").write_bytes(b"?\n" + J2)
    kept, unusable, output = make_data(folder, files=[folder / "a.jsonl", folder / "b.jsonl"])
    assert (kept, unusable) == (GOOD, {"not JSON: Expecting value": 2})
    assert "source a: 2 of 4 rows are unusable and left out" in output


WHERE = [(b'"3"', 1), (b"3", 1), (b"3.0", 1), (b"1e400", 0), (b"1" + b"0" * 400, 0), (b"9" * 5000, 0), (b"null", 0),
         (b"NaN", 0), (b'"x"', None), (b"[3]", None), (b"{}", None)]  # fmt: skip


@pytest.mark.parametrize(("value", "wanted"), WHERE, ids=lambda value: str(value)[:12])
def test_conditions_on_odd_numbers(folder, value, wanted):
    good = b'{"question": "Good?", "answer": "1", "level": 3}\n'
    (folder / "a.jsonl").write_bytes(good + b'{"question": "Odd?", "answer": "2", "level": ' + value + b"}\n")
    kept, unusable, _ = make_data(folder, files=[folder / "a.jsonl"], where={"level": {"min": 1, "max": 5}})
    assert ("Odd?" in kept) == bool(wanted)
    assert unusable == ({"`level` is not a number": 1} if wanted is None else {})


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "9" * 5000, "1e400", "Infinity"])
def test_numbers_beyond_floats_are_larger_or_smaller_than_all(folder, value, sign):
    good = b'{"question": "Good?", "answer": "1", "level": 3}\n'
    (folder / "a.jsonl").write_bytes(good + f'{{"question": "Odd?", "answer": "2", "level": {sign}{value}}}\n'.encode())
    kept, unusable, _ = make_data(folder, files=[folder / "a.jsonl"], where={"level": {"min": 1}})
    assert ("Odd?" in kept) == (not sign)
    assert unusable == {}


@pytest.mark.parametrize(
    ("kind", "value", "column"),
    [
        (pa.list_(pa.float32()), [0.1], "answer.0"),
        (pa.struct([("a", pa.float32()), ("b", pa.string())]), {"a": 0.1, "b": "c"}, "answer.a"),
        (pa.list_(pa.struct([("a", pa.list_(pa.float32()))])), [{"a": [0.5, 0.1]}], "answer.0.a.1"),
        (pa.list_(pa.float32(), 2), [0.1, 0.5], "answer.0"),
        (pa.large_list(pa.struct([("a", pa.float32())])), [{"a": 0.1}], "answer.0.a"),
    ],
    ids=str,
)
def test_nested_floats_of_parquet(folder, kind, value, column):
    file = write_parquet(folder / "a.parquet", parquet_of({"answer": kind}, question=["x", "y"], answer=[value, None]))
    kept, unusable, _ = make_data(folder, {"problem": "question", "answer": column}, [file])
    assert (kept, unusable) == ({"x": "0.1"}, {f"no `{column}`": 1})


CHOICES = [
    ({"answer": 9}, "the answer is not the index of a choice"),
    ({"answer": -1}, "the answer is not the index of a choice"),
    ({"answer": "²"}, "the answer is not the index of a choice"),
    ({"answer": "9" * 5000}, "the answer is not the index of a choice"),
    ({"answer": 0.5}, "the answer is not the index of a choice"),
    ({"answer": None}, "the answer is not the index of a choice"),
    ({"answer": [0]}, "`answer` is not text"),
    ({"choices": None}, "the choices are no list"),
    ({"choices": "a, b"}, "the choices are no list"),
    ({"choices": ["a", None]}, "fewer than two choices, or choices that are empty or alike"),
    ({"choices": ["a", {"b": 1}]}, "`choices.1` is not text"),
    ({"choices": ["a", "\ud800"]}, "`choices.1` is not valid UTF-8"),
    ({"choices": ["a", "#VALUE!"]}, "`choices.1` is a spreadsheet's error, such as #REF!"),
    ({"choices": [str(n) for n in range(27)]}, "fewer than two choices, or choices that are empty or alike"),
]


@pytest.mark.parametrize(
    ("labels", "answer", "right"),
    [("AB", "B", "b"), ("AB", "b", "b"), ("BA", "B", "a"), ("12", "2", "b"), ([1, 2], 1, "a"), (None, "B", "b")],
)
def test_labels_of_the_data_name_its_choices(labels, answer, right):
    """As ARC has them, some from A and some from 1."""
    choices = {"text": ["a", "b"], "label": labels and list(labels)}
    columns = {"problem": "question", "choices": "choices", "answer": "answer", "answer_is": "letter"}
    row = {"question": "Which?", "choices": choices, "answer": answer}
    problem, _ = build_task({"name": "choice", "seed": 0}).read_row(row, columns)
    assert f"{problem.answer}. {right}" in problem.text.split("\n")


@pytest.mark.parametrize(("change", "reason"), CHOICES, ids=lambda value: str(value)[:40])
def test_rows_of_choices_that_are_no_question(folder, change, reason):
    """Index 1.0 is what a spreadsheet makes of 1."""
    good = [
        {"question": f"Which {n}?", "choices": ["a", "b"], "answer": answer} for n, answer in enumerate([0, "1", 1.0])
    ]
    (folder / "a.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*good, {**good[0], "question": "x", **change}])
    )
    columns = {"problem": "question", "choices": "choices", "answer": "answer", "answer_is": "index"}
    source = {"files": [str(folder / "a.jsonl")], "where": {}, "columns": columns, "split": "train"}
    tables, facts = build_task({"name": "choice", "seed": 0, "splits": {"test": {"sources": [source]}}}).make_tables()
    assert facts["sources"][0]["unusable"] == {reason: 1}
    assert len(tables["test"]) == 3


def everything(text):
    return text.strip() and not any("\ud800" <= sign <= "\udfff" for sign in text)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(everything).map(str.strip)
VALUE = (
    TEXT
    | st.from_regex(r"[-+]?[0-9]{1,30}(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?", fullmatch=True)
    | st.sampled_from(ANSWERS)
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(TEXT, VALUE), min_size=1, max_size=6, unique_by=lambda pair: pair[0]),
    st.sampled_from(ENCODINGS[:7]),
)
def test_whatever_is_written_is_read_back(tmp_path_factory, pairs, encoding):
    folder = tmp_path_factory.mktemp("round")
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    (folder / "a.jsonl").write_text(jsonl_text(rows), encoding=encoding, newline="")
    (folder / "b.csv").write_text(csv_text(rows), encoding=encoding, newline="")
    write_parquet(folder / "c.parquet", parquet_of(question=[q for q, _ in pairs], answer=[a for _, a in pairs]))
    for path in sorted(folder.iterdir()):
        found = [row for _, row in rows_of({"files": [str(path)]})]
        assert [(text_at(row, "question"), text_at(row, "answer")) for row in found] == pairs, path.name


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, data):
    """Bytes of every kind, and files of good rows with some bytes changed."""
    folder = tmp_path_factory.mktemp("bytes")
    kind = data.draw(st.sampled_from(["csv", "jsonl", "parquet"]))
    rows = rows_with(ANSWERS[:6])
    write_parquet(folder / "a.parquet", parquet_of(**{key: [row[key] for row in rows] for key in rows[0]}))
    whole = (folder / "a.parquet").read_bytes() if kind == "parquet" else TEXTS[kind](rows).encode()
    content = bytearray(whole)
    if kind == "parquet":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for place, byte in data.draw(
            st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8)
        ):
            content[place] = byte
    (folder / f"a.{kind}").write_bytes(
        data.draw(st.binary(max_size=200)) if data.draw(st.booleans()) else bytes(content)
    )
    source = {"files": [str(folder / f"a.{kind}")], "where": {}, "columns": {"problem": "question", "answer": "answer"}}
    task = build_task({"name": "math", "seed": 0, "splits": {"test": {"sources": [source]}}})
    with suppress(UserError):
        tables, facts = task.make_tables()
        assert len(tables["test"]) + facts["duplicates"]["test"] == facts["sources"][0]["kept"]
