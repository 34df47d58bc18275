"""The choice task."""

import pytest

from effopd.tasks.base import Problem
from effopd.tasks.choice import ChoiceTask
from effopd.tasks.dataset import UnusableRowError

COLUMNS = {"problem": "question", "choices": "choices", "answer": "answer", "answer_is": "index"}
GPQA = {
    "problem": "Question",
    "choices": ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"],
    "answer": "Correct Answer",
    "answer_is": "text",
}


@pytest.fixture
def task():
    return ChoiceTask({"seed": 0})


def question(n):
    return {"question": f"Which is {n}?", "choices": [str(n + k) for k in range(4)], "answer": 0}


def marked(problem):
    """The text of the choice whose letter is the reference."""
    return dict(line.split(". ") for line in problem.text.splitlines()[2:])[problem.answer]


def test_choices_are_shuffled_for_each_question_alike_every_time(task):
    problems = [task.read_row(question(n), COLUMNS)[0] for n in range(80)]
    assert [marked(p) for p in problems] == [str(n) for n in range(80)]
    counts = {letter: sum(p.answer == letter for p in problems) for letter in "ABCD"}
    assert min(counts.values()) > 8, f"the right letter is not spread evenly: {counts}"
    assert [task.read_row(question(n), COLUMNS)[0] for n in range(80)] == problems
    other = [ChoiceTask({"seed": 1}).read_row(question(n), COLUMNS)[0] for n in range(80)]
    assert sum(a.answer != b.answer for a, b in zip(problems, other, strict=True)) > 30


def test_choices_that_worked_responses_name_by_letter_stay_where_they_are(task):
    """Even where a source says both; what makes a question the same as another is not changed by it."""
    for n in range(20):
        row = {**question(n), "solution": "It is A: \\boxed{A}"}
        problem, content = task.read_row(row, {**COLUMNS, "response": "solution"})
        assert problem.answer == "A"
        assert task.verify(problem, row["solution"]).reward == 1
        assert problem.text.splitlines()[2:] == [f"{letter}. {n + k}" for k, letter in enumerate("ABCD")]
        assert content == task.read_row(row, COLUMNS)[1]


def test_the_order_of_a_files_choices_does_not_matter(task):
    row, content = question(5), []
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):
        shuffled = {**row, "choices": [row["choices"][k] for k in order], "answer": order.index(0)}
        content.append(task.read_row(shuffled, COLUMNS)[1])
    assert content[0] == content[1]


def test_what_the_answer_column_may_hold(task):
    row = {"question": "Which?", "choices": ["2", "0", "1"]}
    for kind, answer in (("index", 2), ("index", "2"), ("letter", "C"), ("letter", "c"), ("text", "1")):
        assert marked(task.read_row({**row, "answer": answer}, {**COLUMNS, "answer_is": kind})[0]) == "1"
    labeled = {"question": "Which?", "choices": {"label": ["A", "B"], "text": ["no", "yes"]}, "answer": "B"}
    assert marked(task.read_row(labeled, {**COLUMNS, "answer_is": "letter"})[0]) == "yes"


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        (["A)21", "B)21.5", "C)22"], ["21", "21.5", "22"]),  # AQuA
        (["(A) one", "(B) two", "(C) six"], ["one", "two", "six"]),
        (["A. one", "B. two", "C. six"], ["one", "two", "six"]),
        (["A: one", "B: two", "C: six"], ["one", "two", "six"]),
        (["B)21", "A)21.5", "C)22"], ["B)21", "A)21.5", "C)22"]),
        (["A)21", "B)21.5", "22"], ["A)21", "B)21.5", "22"]),
        (["A.M.", "B.M.", "C.M."], ["A.M.", "B.M.", "C.M."]),
        (["A)", "B)", "C)"], ["A)", "B)", "C)"]),
        (["A) ", "B) x", "C) y"], ["A)", "B) x", "C) y"]),
    ],
)
def test_letters_that_choices_begin_with(task, choices, shown):
    row = {"question": "Which?", "choices": choices}
    for kind, answer in (("index", 1), ("letter", "B"), ("text", choices[1]), ("text", shown[1])):
        problem = task.read_row({**row, "answer": answer}, {**COLUMNS, "answer_is": kind})[0]
        lines = [line.split(". ", 1) for line in problem.text.splitlines()[2:]]
        assert sorted(text for _, text in lines) == sorted(shown)
        assert dict(lines)[problem.answer] == shown[1]


def test_gpqas_columns(task):
    row = {"Question": "Which?", "Correct Answer": "yes\n", **{f"Incorrect Answer {n}": f"no {n}" for n in (1, 2, 3)}}
    problem, _ = task.read_row(row, GPQA)
    assert marked(problem) == "yes"
    assert [line[:3] for line in problem.text.splitlines()] == ["Whi", "", "A. ", "B. ", "C. ", "D. "]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": 4}, "the answer is not the index of a choice"),
        ({"answer": -1}, "the answer is not the index of a choice"),
        ({"answer": "A"}, "the answer is not the index of a choice"),
        ({"choices": ["one"]}, "fewer than two choices"),
        ({"choices": ["one", "one"]}, "choices that are empty or alike"),
        ({"choices": "one"}, "the choices are no list"),
        ({"question": ""}, "no question"),
    ],
)
def test_rows_that_are_no_question(task, change, reason):
    with pytest.raises(UnusableRowError, match=reason):
        task.read_row({**question(1), **change}, COLUMNS)


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        (r"so \boxed{C}", "C"),
        (r"\boxed{\text{C}}", "C"),
        (r"\boxed{(C)}", "C"),
        (r"\boxed{C. some text}", "C"),
        (r"\boxed{\mathbf{C}}", "C"),
        (r"\boxed{A} no, \boxed{C}", "C"),
        ("Answer: C", "C"),
        ("**Answer:** C", "C"),
        ("The answer is (C), as A is wrong.", "C"),
        ("the correct answer is C because", "C"),
        ("Answer: A\n", "A"),
        ("Answer: D. Wait. Answer: C.", "C"),
        (r"Answer: A, hence \boxed{C}", "C"),
        (r"\boxed{42}, so the answer is C.", "C"),
        ("The answer is a number.", None),
        ("Answer: I think it is hard", None),
        ("The answer is A number", None),
        ("Answer: Carbon", None),
        ("C", None),
        ("", None),
    ],
)
def test_which_letter_is_read(task, completion, letter):
    verdict = task.verify(Problem("?", "C"), completion)
    assert verdict.reward == (letter == "C")
    if letter is None:
        assert verdict.reason.startswith("no answer")
    elif letter != "C":
        assert verdict.reason == f"answers {letter}, not the reference"


def test_reference_letters_are_accepted_and_others_rejected(task):
    assert task.self_check([task.read_row(question(n), COLUMNS)[0] for n in range(20)]) == []
