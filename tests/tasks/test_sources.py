"""Where problems come from, and that no problem is in two splits."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.artifacts.manifests import read_manifest
from effopd.common.errors import ConfigError, UserError
from effopd.common.randomness import seed_of
from effopd.specs.read import read_spec
from effopd.stages.make_data import make_data
from effopd.tasks.base import Problem, build_task
from effopd.tasks.sources import local_files, rows_of, source_name, text_at, value_at, wanted
from effopd.tasks.splits import Item, content_hash, make_splits, without_seen

ROWS = [
    {"question": f"What is {n} + {n}?", "final_answer": str(2 * n), "difficulty": n / 10, "topic": "sums"}
    for n in range(100)
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def source(**changes):
    columns = {"problem": "question", "answer": "final_answer"}
    return {"split": "train", "where": {}, "columns": columns, **changes}


def tables_of(splits, seed=0):
    return build_task({"name": "math", "seed": seed, "splits": splits}).make_tables()


def hashes(table):
    return {content_hash(problem) for problem in table["problem"]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_files_of_each_kind_give_the_same_problems(tmp_path, suffix):
    file = write(tmp_path / f"data{suffix}", ROWS)
    tables, facts = tables_of(
        {"train": {"sources": [source(files=[file])]}, "validation": {"share": 0.1}, "test": {"share": 0.2}}
    )
    assert sum(len(table) for table in tables.values()) == 100
    assert set(tables["train"]["source"]) == {"data"}
    row = tables["test"].iloc[0]
    assert row["answer"] == str(2 * int(row["problem"].split()[2]))
    assert facts["sources"] == [
        {"split": "train", "source": "data", "rows": 100, "filtered": 0, "unusable": {}, "kept": 100}
    ]


def test_a_local_folder_is_read_as_the_hub_reads_one(tmp_path, monkeypatch):
    write(tmp_path / "set/data/train-00000.jsonl", ROWS[:60])
    write(tmp_path / "set/data/test-00000.jsonl", ROWS[60:])
    monkeypatch.chdir(tmp_path)
    dataset = {"dataset": "./set"}
    tables, _ = tables_of({
        "train": {"sources": [source(**dataset)]},
        "validation": {"share": 0.2},
        "test": {"sources": [source(**dataset, split="test", name="held out")]},
    })  # fmt: skip
    assert len(tables["train"]) + len(tables["validation"]) == 60
    assert len(tables["test"]) == 40
    assert set(tables["test"]["source"]) == {"held out"}
    assert set(tables["train"]["source"]) == {"set"}
    assert [path.name for path in local_files(dataset)] == ["test-00000.jsonl", "train-00000.jsonl"]
    with pytest.raises(
        UserError, match=r'source set: the data set ./set cannot be read \(ValueError: Unknown split "dev"'
    ):
        tables_of({"train": {"sources": [source(**dataset, split="dev")]}})


def test_nested_columns_and_chat_prompts(tmp_path):
    """As in Eurus-2-RL-Data: messages, and the answer inside a structure."""
    rows = [
        {
            "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": f"Problem {n}"}],
            "reward_model": {"ground_truth": json.dumps({"inputs": ["1"], "outputs": [str(n)]}), "style": "rule"},
            "ability": "code" if n % 2 else "math",
        }
        for n in range(10)
    ]
    for suffix in (".parquet", ".jsonl"):
        file = write(tmp_path / f"data{suffix}", rows)
        columns = {"problem": "prompt.1.content", "tests": "reward_model.ground_truth"}
        train = source(files=[file], columns=columns, where={"ability": {"equals": "code"}})
        task = build_task(
            {
                "name": "code",
                "seed": 0,
                "splits": {"train": {"sources": [train]}, "validation": {"share": 0.3}, "test": {"share": 0.3}},
            }
        )
        tables, facts = task.make_tables()
        table = pd.concat(tables.values())
        assert sorted(table["problem"]) == [f"Problem {n}" for n in (1, 3, 5, 7, 9)]
        assert facts["sources"][0]["filtered"] == 5
        assert json.loads(table["answer"].iloc[0])["kind"] == "stdin"


def test_how_hard_a_problem_is_goes_with_it(tmp_path):
    file = write(tmp_path / "a.csv", ROWS)
    levels = {row["question"]: row["difficulty"] for row in ROWS}
    columns = {"problem": "question", "answer": "final_answer"}
    for more, expected in (({}, None), ({"difficulty": "difficulty"}, levels)):
        train = {"sources": [source(files=[file], columns=columns | more)]}
        table, _ = tables_of({"train": train, "validation": {"share": 0.1}, "test": {"share": 0.1}})
        found = table["train"].set_index("problem")["difficulty"]
        assert found.isna().all() if expected is None else (found == [expected[p] for p in found.index]).all()
    with pytest.raises(UserError, match="column `topic` holds 'sums', and a number is asked of it"):
        train = {"sources": [source(files=[file], columns=columns | {"difficulty": "topic"})]}
        tables_of({"train": train, "validation": {"share": 0.1}, "test": {"share": 0.1}})


def test_rows_are_chosen_by_conditions(tmp_path):
    hard = source(files=[write(tmp_path / "a.csv", ROWS)], where={"difficulty": {"min": 6, "max": 8}})
    tables, facts = tables_of({"train": {"sources": [hard]}, "validation": {"share": 0.3}, "test": {"share": 0.3}})
    assert sum(map(len, tables.values())) == 21
    assert facts["sources"][0]["filtered"] == 79
    assert wanted({"x": None}, {"x": {"min": 0}}) is False
    assert wanted({"x": float("nan")}, {"x": {"min": 0}}) is False
    assert wanted({"x": 3, "y": "a"}, {"x": {"equals": 3}, "y": {"equals": "a"}}) is True
    assert wanted({"x": "3"}, {"x": {"equals": 3}}) is True
    with pytest.raises(UserError, match="column `topic` holds 'sums', and a number is asked of it"):
        wanted(ROWS[0], {"topic": {"min": 1}})


def test_columns_that_are_not_there_are_named():
    assert value_at({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert value_at({"a": [{"b": 2}, {"b": 3}]}, "a.-1.b") == 3
    with pytest.raises(
        UserError, match=r"the data has no column `anser`. Set `columns` of the source to some of: question,"
    ):
        value_at(ROWS[0], "anser")
    with pytest.raises(UserError, match="column `a` holds a list, not text. Name a part of it, such as `a.0`"):
        text_at({"a": [1]}, "a")
    assert [text_at({"a": v}, "a") for v in (3, 3.0, 3.5, None, float("nan"), " x ", True)] == [
        "3",
        "3",
        "3.5",
        "",
        "",
        "x",
        "True",
    ]


def test_sources_that_cannot_be_read_say_so(tmp_path):
    with pytest.raises(
        ConfigError, match=r"the source file .*none.jsonl does not exist. Correct the path in `task.splits`"
    ):
        local_files({"files": [str(tmp_path / "none.jsonl")]})
    with pytest.raises(ConfigError, match=r"data.txt is none of .parquet, .jsonl, .csv. Convert it"):
        local_files({"files": ["data.txt"]})
    with pytest.raises(ConfigError, match="the source folder ./none does not exist"):
        local_files({"dataset": "./none"})
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="broken.parquet is not a readable parquet file"):
        list(rows_of({"files": [str(tmp_path / "broken.parquet")]}))
    assert local_files({"dataset": "owner/name"}) == []
    assert source_name({"dataset": "owner/name"}) == "name"


def test_rows_without_a_problem_are_counted_and_none_left_is_an_error(tmp_path):
    rows = [*ROWS[:10], {**ROWS[10], "final_answer": ""}, {**ROWS[11], "question": None}]
    file = write(tmp_path / "a.jsonl", rows)
    tables, facts = tables_of(
        {"train": {"sources": [source(files=[file])]}, "validation": {"share": 0.3}, "test": {"share": 0.3}}
    )
    assert facts["sources"][0]["unusable"] == {"no problem or no answer": 2}
    assert sum(map(len, tables.values())) == 10
    empty = write(tmp_path / "b.jsonl", rows[10:])
    with pytest.raises(
        UserError,
        match=r"source b: none of its 2 rows is a problem \(0 left out by `where`; 2 no problem or no answer \(first: .*b.jsonl, line 1\)\)",
    ):
        tables_of({"train": {"sources": [source(files=[empty])]}})


def variants(text, rng):
    """The same text in another dress."""
    return rng.choice([text, text.upper(), f"  {text}\n", text.replace(" ", "  "), text.replace("?", "？")])


def test_splits_share_no_problem_whatever_the_sources_hold(tmp_path):
    """Sources that overlap each other and repeat themselves in other dress: the promise of the whole module."""
    rng = random.Random(0)
    for trial in range(5):
        files = {}
        for split in ("train", "validation", "test"):
            rows = [{**row, "question": variants(row["question"], rng)} for row in rng.choices(ROWS, k=80)]
            files[split] = write(tmp_path / f"{trial}/{split}.jsonl", rows)
        tables, facts = tables_of({split: {"sources": [source(files=[file])]} for split, file in files.items()})
        found = {split: hashes(table) for split, table in tables.items()}
        for split, table in tables.items():
            assert len(found[split]) == len(table), f"{split} holds a problem twice"
        assert not found["train"] & found["validation"]
        assert not found["train"] & found["test"]
        assert not found["validation"] & found["test"]
        assert found["test"] == {content_hash(row["question"]) for _, row in rows_of({"files": [files["test"]]})}, (
            "held out whole"
        )
        assert facts["overlaps"]["test"] == 0
        assert facts["overlaps"]["train"] > 0
        for split in tables:
            assert len(tables[split]) + facts["duplicates"][split] + facts["overlaps"][split] == 80


def items(texts):
    return [Item(Problem(text, "1"), content_hash(text), "s", content_hash(text)) for text in texts]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=80),
    st.lists(st.integers(0, 60), max_size=30),
    st.floats(0.01, 0.5),
    st.integers(0, 3),
)
def test_cut_and_given_splits_are_disjoint(train, test, share, seed):
    given = {"train": items(map(str, train)), "test": items(map(str, test))}
    splits = make_splits(given, {"validation": share}, {"train": 10}, seed).items
    contents = {split: [item.content for item in kept] for split, kept in splits.items()}
    assert len(set().union(*contents.values())) == sum(map(len, contents.values()))
    assert len(contents["train"]) <= 10
    assert set(contents["test"]) == {content_hash(str(n)) for n in test}


TEXTS = st.lists(st.integers(0, 30), max_size=40)


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries({"train": TEXTS}, optional={"validation": TEXTS, "test": TEXTS}),
    st.dictionaries(st.sampled_from(["train", "validation", "test"]), st.integers(0, 8)),
    st.integers(0, 3),
)
def test_no_problem_of_a_held_out_split_is_trained_on_though_its_limit_leaves_it_out(texts, limits, seed):
    """Against the written-out rule: who may hold a problem does not depend on how many of them are drawn."""
    given = {  # items that know their place
        split: [replace(item, source=str(place)) for place, item in enumerate(items(map(str, numbers)))]
        for split, numbers in texts.items()
    }
    splits = make_splits(given, {}, limits, seed)
    earlier: set[int] = set()
    for split in ("test", "validation", "train"):
        if split not in texts:
            assert split not in splits.items
            continue
        own = [n for n in texts[split] if n not in earlier]
        distinct = list(dict.fromkeys(own[::-1]))[::-1]  # where each stands last
        kept = [int(item.problem.text) for item in splits.items[split]]
        assert [int(item.source) for item in splits.items[split]] == [texts[split].index(n) for n in kept]
        assert not set(kept) & earlier, f"{split} holds what an earlier split keeps for itself"
        assert kept == [n for n in distinct if n in kept], "in their order"
        assert len(kept) == min(limits.get(split, len(distinct)), len(distinct))
        assert splits.overlaps[split] == len(texts[split]) - len(own)
        assert splits.duplicates[split] == len(own) - len(distinct)
        assert splits.beyond_limit[split] == len(distinct) - len(kept)
        earlier |= set(texts[split])


def test_a_problem_stays_in_its_split_as_data_grows():
    texts = [f"problem {n}" for n in range(2000)]
    shares = {"test": 0.2, "validation": 0.1}
    small, large = (make_splits({"train": items(t)}, shares, {}, 0).items for t in (texts[:500], texts[::-1]))
    for split in small:
        assert {i.content for i in small[split]} <= {i.content for i in large[split]}
    assert len(large["test"]) / 2000 == pytest.approx(0.2, abs=0.03)
    assert len(large["validation"]) / 2000 == pytest.approx(0.1, abs=0.03)


def test_a_limit_draws_by_seed_and_a_larger_one_adds_to_it():
    given = {"train": items(f"problem {n}" for n in range(100))}
    few, more, other = (
        {i.problem.text for i in make_splits(given, {}, {"train": rows}, seed).items["train"]}
        for rows, seed in ((10, 0), (20, 0), (10, 1))
    )
    assert len(few) == 10
    assert few < more
    assert few != other
    assert make_splits(given, {}, {"train": 10}, 0).beyond_limit["train"] == 90


def test_what_a_limit_draws_is_named_by_seed_and_content_alone():
    """Written out: data that was drawn once must be drawn again by later versions."""
    pool = items(f"problem {n}" for n in range(30))
    for count in (0, 1, 29, 30, 31):
        wanted = sorted((item.content for item in pool), key=lambda content: seed_of(7, "rows", content))[:count]
        kept = make_splits({"train": pool}, {}, {"train": count}, 7).items["train"]
        assert [item.content for item in kept] == [item.content for item in pool if item.content in wanted]


@pytest.mark.parametrize(
    ("start", "shares", "split"),
    [
        ("0", {"test": 0.5}, "test"),
        ("7f", {"test": 0.5}, "test"),
        ("8", {"test": 0.5}, "train"),
        ("8", {"test": 0.5, "validation": 0.25}, "validation"),
        ("bf", {"test": 0.5, "validation": 0.25}, "validation"),
        ("c", {"test": 0.5, "validation": 0.25}, "train"),
        ("0", {"validation": 0.25}, "validation"),
        ("4", {"validation": 0.25}, "train"),
        ("f", {"test": 0.5, "validation": 0.5}, "validation"),
    ],
)
def test_shares_part_the_hashes_from_the_first_on_and_their_ends_belong_to_the_next(start, shares, split):
    item = Item(Problem("x", "1"), start + ("f" if start.endswith("f") else "0") * 40, "s", "q")
    found = make_splits({"train": [item]}, shares, {}, 0).items
    assert {name for name, kept in found.items() if kept} == {split}
    assert 0 <= item.place < 1


def test_a_hash_is_blind_to_dress_and_to_nothing_else():
    dress = ["What is 2 + 3?", "what IS  2+3?", " What\tis\n2 + 3?", "What is ２ + 3？"]
    assert len({content_hash(text) for text in dress}) == 1
    assert len({content_hash(text) for text in ("2 + 3", "2 - 3", "2 + 33", "x²", "x")}) == 5
    assert content_hash("x²") == content_hash("X2"), "compatibility variants are one character"


def test_an_empty_split_is_an_error(tmp_path):
    file = write(tmp_path / "a.jsonl", ROWS[:5])
    same = {"sources": [source(files=[file])]}
    with pytest.raises(
        UserError, match="split holds no problem: all were left out, are duplicates or are held out elsewhere"
    ):
        tables_of({"train": same, "validation": {"share": 0.2}, "test": same})


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    """The command itself, with the library for the hub told that there is no network."""
    train = source(dataset="owner/name", revision="0123abc", where={})
    task = {
        "name": "math",
        "seed": 0,
        "splits": {"train": {"sources": [train]}, "validation": {"share": 0.1}, "test": {"share": 0.1}},
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "effopd",
            "make-data",
            "--spec",
            json.dumps({"task": task}),
            "--out",
            str(tmp_path / "m.json"),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        "error: source name: the data set owner/name at revision 0123abc cannot be read (ConnectionError: "
    )
    assert "Check `dataset`, `revision`, `subset` and `split`" in line


CHOICE = {"problem": "question", "choices": ["right", "wrong"], "answer": "right", "answer_is": "text"}


def choices_of(tmp_path, questions, seed=0):
    """A choice task's test split, from (question, right choice, wrong choice)."""
    rows = [dict(zip(("question", "right", "wrong"), row, strict=True)) for row in questions]
    test = source(files=[write(tmp_path / f"choices{seed}.jsonl", rows)], columns=CHOICE)
    return {"name": "choice", "seed": seed, "splits": {"test": {"sources": [test]}}}


def asked(table):
    return [text.split("\n")[0] for text in table["problem"]]


def test_problems_that_were_seen_are_known_across_tasks(tmp_path):
    """By what counts of them, or if it is all of a problem of the other task, by the question alone."""
    train = [
        {"question": "What is 1 + 1?", "final_answer": "2"},
        {"question": "WHAT is\n2+2?", "final_answer": "4"},
    ]
    math, _ = tables_of({"train": {"sources": [source(files=[write(tmp_path / "train.jsonl", train)])]}})
    questions = [("What is 2 + 2?", "4", "5"), ("Which?", "a", "b"), ("Which?", "c", "d"), ("What is 3 + 3?", "6", "7")]
    choice = build_task(choices_of(tmp_path, questions)).make_tables()[0]["test"]
    assert asked(without_seen(choice, [math["train"]])) == ["Which?", "Which?", "What is 3 + 3?"]
    # another seed shuffles the choices otherwise: the same question with the same choices is the same problem
    other = build_task(choices_of(tmp_path, [("Which?", "d", "c"), questions[0]], seed=1)).make_tables()[0]["test"]
    assert asked(without_seen(choice, [other])) == ["Which?", "What is 3 + 3?"]
    assert choice["problem"][1] == without_seen(choice, [other])["problem"][0], "only the one with these choices went"
    # a choice question that was trained on, asked as mathematics
    assert asked(without_seen(math["train"], [choice])) == ["What is 1 + 1?"]
    assert without_seen(choice, []).equals(choice)
    sums = pd.DataFrame({"problem": ["what is 3+3?"], "answer": ["6"]})  # a table without hashes, as of `arithmetic`
    assert "What is 3 + 3?" not in asked(without_seen(choice, [sums]))


def test_another_tasks_data_is_its_test_split_without_what_is_trained_on(tmp_path, capfd):
    training = tmp_path / "data/math/manifest.json"
    own = {"train": {"sources": [source(files=[write(tmp_path / "train.jsonl", ROWS[:60])])]},
           "validation": {"share": 0.2}, "test": {"share": 0.2}}  # fmt: skip
    make_data(read_spec("make_data", {"task": {"name": "math", "seed": 0, "splits": own}, "code": "x"}), training)
    held = {split: pd.read_parquet(training.with_name(f"{split}.parquet"))["problem"] for split in own}
    questions = [(row["question"], row["final_answer"], "none") for row in ROWS]
    out = tmp_path / "data/other/manifest.json"
    make_data(read_spec("make_data", {"task": choices_of(tmp_path, questions), "code": "x"}), out, training=training)
    manifest, left = read_manifest(out, "data"), pd.read_parquet(out.with_name("test.parquet"))
    seen = {*held["train"], *held["validation"]}
    assert seen
    assert asked(left) == [row["question"] for row in ROWS if row["question"] not in seen]
    assert set(held["test"]) <= set(asked(left)), "a test split may hold what another one holds"
    assert manifest.result["overlaps"] == {"test": len(seen)}
    assert manifest.result["rows"] == {"test": 100 - len(seen)}
    assert manifest.parents == {"training": read_manifest(training).fingerprint}
    assert f"left out, overlaps: {len(seen)} of test" in capfd.readouterr().err
    known = [(question, "1", "none") for question in held["train"]]
    none = tmp_path / "data/none/manifest.json"
    with pytest.raises(
        UserError,
        match=rf"all {len(known)} test problems are in the data that is trained on .* Evaluate on others: change "
        r"`evaluation\.tasks\.none\.task\.splits\.test`",
    ):
        make_data(read_spec("make_data", {"task": choices_of(tmp_path, known), "code": "x"}), none, training=training)
    assert not none.exists()


def test_what_is_pretrained_on_is_dropped_from_another_task_too(tmp_path):
    corpus = {"size": 40, "direct_answers": 0.5, "direct_error": 0.5, "slips": 0.1}
    sums = {"name": "arithmetic", "seed": 0, "min_terms": 3, "max_terms": 4, "largest_term": 9, "corpus": corpus,
            "splits": {"train": 4, "validation": 4, "test": 4}}  # fmt: skip
    training = tmp_path / "data/arithmetic/manifest.json"
    make_data(read_spec("make_data", {"task": sums, "code": "x"}), training)
    pretrained = pd.read_parquet(training.with_name("corpus.parquet"))["prompt"].unique()
    trained = {
        p for name in ("train", "validation") for p in pd.read_parquet(training.with_name(f"{name}.parquet"))["problem"]
    }
    only = next(prompt for prompt in pretrained if prompt not in trained)
    rows = [{"problem": problem, "answer": "1"} for problem in (only, "1+1+1+1+1=")]
    test = source(files=[write(tmp_path / "sums.jsonl", rows)], columns={"problem": "problem", "answer": "answer"})
    out = tmp_path / "data/other/manifest.json"
    make_data(
        read_spec(
            "make_data", {"task": {"name": "math", "seed": 0, "splits": {"test": {"sources": [test]}}}, "code": "x"}
        ),
        out,
        training=training,
    )
    assert pd.read_parquet(out.with_name("test.parquet"))["problem"].tolist() == ["1+1+1+1+1="]


def test_worked_responses_come_with_the_training_problems_of_sources_that_have_them(tmp_path):
    """Empty if a row or a source has none, and no problem less; held-out splits have no such column."""
    worked = [
        {**row, "solution": f" It is\n{row['final_answer']}. " if n % 3 else None} for n, row in enumerate(ROWS[:60])
    ]
    files = [write(tmp_path / "worked.jsonl", worked), write(tmp_path / "bare.jsonl", ROWS[60:])]
    columns = {**source()["columns"], "response": "solution"}
    train = {"sources": [source(files=files[:1], columns=columns), source(files=files[1:])]}
    tables, _ = tables_of({"train": train, "validation": {"share": 0.1}, "test": {"share": 0.1}})
    plain, _ = tables_of(
        {"train": {"sources": [source(files=files)]}, "validation": {"share": 0.1}, "test": {"share": 0.1}}
    )
    assert {name for name, table in tables.items() if "response" in table} == {"train"}
    assert not any("response" in table for table in plain.values())
    assert tables["train"]["problem"].tolist() == plain["train"]["problem"].tolist()
    expected = {row["question"]: (row.get("solution") or "").strip() for row in [*worked, *ROWS[60:]]}
    assert tables["train"]["response"].tolist() == [expected[problem] for problem in tables["train"]["problem"]]
    assert 0 < (tables["train"]["response"] != "").sum() < 50
