"""The arithmetic task, and what all tasks share."""

import hashlib

import pandas as pd
import pytest

from effopd.tasks.arithmetic import split_of
from effopd.tasks.base import Problem, Task, Verdict, build_task
from tiny_models import TASK_SECTION


def test_splits_are_disjoint_and_have_the_sizes_asked_for(task):
    splits = {split: task.make_split(split) for split in ("train", "validation", "test")}
    for split, table in splits.items():
        assert len(table) == TASK_SECTION["splits"][split]
        assert {split_of(problem) for problem in table["problem"]} == {split}
    for held_out in ("validation", "test"):
        assert splits[held_out]["problem"].is_unique
    assert not set(task.make_corpus()["prompt"]) & set(splits["test"]["problem"])
    assert set(splits["test"]["problem"].str.count(r"\d")) == {3, 4, 5, 6}


def test_answers_are_right_and_the_verifier_accepts_them(task):
    for row in task.make_split("test").itertuples():
        terms = row.problem.rstrip("=").split("+")
        assert int(row.answer) == sum(map(int, terms))
        assert task.verify(Problem(row.problem, row.answer), f"#{row.answer}").reward == 1


@pytest.mark.parametrize(
    ("completion", "reward", "reason"),
    [
        ("15,20#20", 1, "right"),
        ("#20", 1, "right, without working"),
        ("15,21#21", 0, "wrong sum"),
        ("15,20", 0, "no answer: '#' is missing"),
        ("15,20#", 0, "the answer after '#' is not a number"),
        ("15#20#20", 0, "the answer after '#' is not a number"),
        ("", 0, "no answer: '#' is missing"),
    ],
)
def test_verdicts(task, completion, reward, reason):
    verdict = task.verify(Problem("7+8+5=", "20"), completion)
    assert (verdict.reward, verdict.reason) == (reward, reason)


def test_the_corpus_is_as_careless_as_configured():
    section = {**TASK_SECTION, "corpus": {"size": 6000, "slips": 0.15, "direct_answers": 0.3, "direct_error": 0.8}}
    task = build_task(section)
    corpus = task.make_corpus()
    direct = corpus["completion"].str.startswith("#")
    assert direct.mean() == pytest.approx(0.3, abs=0.03)
    pairs = zip(corpus["prompt"], corpus["completion"], strict=True)
    right = pd.Series([task.verify(Problem(prompt, ""), completion).reward for prompt, completion in pairs])
    assert right[direct].mean() == pytest.approx(0.2, abs=0.04)
    first_sum = corpus[~direct]["completion"].str.extract(r"^(\d+)")[0].astype(int)
    wanted = corpus[~direct]["prompt"].str.extract(r"^(\d)\+(\d)").astype(int).sum(axis=1)
    # a slip below zero is raised to zero and may be right by accident
    assert (first_sum == wanted).mean() == pytest.approx(0.85, abs=0.02)


def test_the_tokenizer_is_one_character_a_token_and_round_trips(task, tmp_path):
    from transformers import AutoTokenizer

    task.make_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("7+8+5=")["input_ids"]
    assert len(ids) == 6
    assert tokenizer.decode(ids) == "7+8+5="
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, 16)


def problems_of(table):
    return [Problem(row.problem, row.answer) for row in table.itertuples()]


def test_the_self_check_finds_nothing_wrong_with_the_verifier(task):
    assert task.self_check(problems_of(task.make_split("test"))) == []


class Careless(Task):
    """A verifier with every fault that the self-check is for."""

    def make_tables(self):
        return {}, {}

    def right_completion(self, problem):
        return problem.answer or None

    def wrong_completion(self, problem):
        return "wrong"

    def verify(self, problem, completion):
        return Verdict({"1": 1.0, "2": 0.0}.get(problem.answer, 1.0 if completion != "wrong" else 0.25), "because")


def test_the_self_check_says_what_is_wrong_with_a_verifier():
    found = Careless().self_check(
        [Problem("all  are\nright", "1"), Problem("none is", "2"), Problem("no reference", "")]
    )
    assert found == [
        "'all are right': a wrong answer gets the reward 1 (because)",
        "'all are right': an empty completion gets the reward 1 (because)",
        "'none is': its own reference answer is rejected (because)",
        "'no reference': a wrong answer gets the reward 0.25 (because)",
        "'no reference': an empty completion gets the reward 1 (because)",
    ]


def test_verdicts_on_many_completions_are_those_on_each(task):
    problems = problems_of(task.make_split("test"))[:6]
    completions = [f"#{p.answer}" if n % 2 else "#1" for n, p in enumerate(problems)]
    assert task.verify_all(problems, completions) == [
        task.verify(*pair) for pair in zip(problems, completions, strict=True)
    ]


def test_digits_are_drawn_as_ever_and_larger_terms_are_as_right():
    tables, _ = build_task(TASK_SECTION).make_tables()
    assert (tables["train"]["difficulty"] == tables["train"]["problem"].str.count("[+]") + 1).all()
    texts = {name: table.drop(columns=["difficulty", "response"], errors="ignore") for name, table in tables.items()}
    found = {name: hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:16] for name, table in texts.items()}
    assert found == {
        "train": "535fd31cd9ea59b4",
        "validation": "6ed53124cc6a4767",
        "test": "2bac6bd008962e68",
        "corpus": "b91bc5fe4445e606",
    }, "what was trained on these problems would have to be trained again"
    harder = build_task({**TASK_SECTION, "largest_term": 99, "max_terms": 9})
    tables, _ = harder.make_tables()
    terms = [[int(term) for term in text.rstrip("=").split("+")] for text in tables["train"]["problem"]]
    assert max(map(max, terms)) > 90
    assert {len(row) for row in terms} == set(range(3, 10))
    assert [int(answer) for answer in tables["train"]["answer"]] == [sum(row) for row in terms]
    problems = [Problem(*row) for row in tables["test"].itertuples(index=False)]
    assert harder.self_check(problems) == []


def test_training_problems_of_sums_come_with_worked_responses_that_are_right():
    task = build_task({**TASK_SECTION, "largest_term": 99, "max_terms": 9})
    tables, _ = task.make_tables()
    train = tables["train"]
    assert {name for name, table in tables.items() if "response" in table} == {"train"}
    for problem, response in zip(problems_of(train), train["response"], strict=True):
        assert task.verify(problem, response).reason == "right"
        steps = [int(part) for part in response.partition("#")[0].split(",")]
        terms = [int(term) for term in problem.text.rstrip("=").split("+")]
        assert steps == [sum(terms[:count]) for count in range(2, len(terms) + 1)]
