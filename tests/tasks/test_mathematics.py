"""The math task: what is accepted, and that nothing hangs."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from effopd.tasks import mathematics
from effopd.tasks.base import Problem
from effopd.tasks.mathematics import MathTask


@pytest.fixture(scope="module")
def task():
    return MathTask({})


@pytest.mark.parametrize(
    ("reference", "answer", "reward"),
    [
        ("42", "42", 1),
        ("42", "42.0", 1),
        ("42", "43", 0),
        ("-2", "2", 0),
        (r"\frac{1}{2}", "0.5", 1),
        (r"\frac12", "1/2", 1),
        ("1,000", "1000", 1),
        (r"50\%", "0.5", 1),
        ("x^2+2x+1", "(x+1)^2", 1),
        ("x^2+2x+1", "(x-1)^2", 0),
        (r"\{1,2\}", r"\{2, 1\}", 1),
        ("(1,2)", "(2,1)", 0),
        ("[0,1)", "[0,1]", 0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1),
        (r"\pi", "3.14", 0),
        ("y = 3x", "3x", 1),
        (r"90^\circ", "90", 1),
        (r"\text{Monday}", "Monday", 1),
        ("Monday", "Tuesday", 0),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", 1),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", 0),
        ("3", "1, 2, 3", 0),
        ("3", "1 or 3", 0),
        ("$7$", "7.", 1),
        ("7", "((((((((((((((((", 0),
        ("7", r"\frac{", 0),
        ("0.333333", r"\frac13", 1),
    ],
)
def test_answers(task, reference, answer, reward):
    assert task.verify(Problem("?", reference), f"Thus \\boxed{{{answer}}}.").reward == reward


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("the answer is 42", "no answer: nothing is boxed"),
        (r"\boxed{}", "no answer: nothing is boxed"),
        (r"\boxed{42", "no answer: nothing is boxed"),
        (r"\boxed{43}", "the boxed answer is not the reference"),
        (rf"\boxed{{{'1+' * 600}1}}", "the boxed answer is longer than 1000 characters"),
    ],
)
def test_reasons(task, completion, reason):
    assert task.verify(Problem("?", "42"), completion).reason == reason


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["9^{9^{9^{9}}}", "5!!!!!!!!", r"\binom{10^{12}}{10^{11}}"])
def test_an_answer_that_takes_for_ever_is_given_up_and_the_next_is_judged(monkeypatch, answer):
    monkeypatch.setattr(mathematics, "SECONDS", 1.5)
    task = MathTask({})
    verdict = task.verify(Problem("?", "5"), f"\\boxed{{{answer}}}")
    assert verdict.reward == 0
    assert "within 1.5 s" in verdict.reason or "cannot be compared" in verdict.reason
    assert task.verify(Problem("?", "4"), r"\boxed{2+2}").reward == 1


def test_threads_may_judge_at_once(task):
    """math-verify's own time limits are signals, which only the main thread can have."""
    assert threading.current_thread() is threading.main_thread()
    with ThreadPoolExecutor(4) as pool:
        rewards = list(pool.map(lambda n: task.verify(Problem("?", f"{n}"), f"\\boxed{{{n % 3}.0}}").reward, range(12)))
    assert rewards == [1, 1, 1] + [0] * 9


def test_a_forked_process_has_workers_of_its_own(task):
    assert task.verify(Problem("?", "4"), r"\boxed{2+2}").reward == 1
    child = os.fork()
    if child == 0:
        right = task.verify(Problem("?", "6"), r"\boxed{2+4}").reward == 1
        wrong = task.verify(Problem("?", "6"), r"\boxed{2+5}").reward == 1
        os._exit(0 if right and not wrong else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert task.verify(Problem("?", "4"), r"\boxed{3+2}").reward == 0


def test_workers_end_with_the_process_that_started_them():
    script = (
        "from effopd.tasks.mathematics import MathTask\nfrom effopd.tasks.base import Problem\nimport os\n"
        "task = MathTask({})\ntask.verify(Problem('?', '1'), '\\\\boxed{2}')\n"
        "print(task._workers.idle.get().process.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    worker = int(done.stdout)
    for _ in range(600):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        threading.Event().wait(0.05)
    pytest.fail("the worker is still there")


def test_an_answer_is_never_run_as_python(task, tmp_path):
    mark = tmp_path / "mark"
    for answer in (f"__import__('os').mkdir('{mark}')", f"1+__import__('os').mkdir('{mark}')", f"open('{mark}','w')"):
        assert task.verify(Problem("?", "1"), f"\\boxed{{{answer}}}").reward == 0
    assert not mark.exists()


def test_reference_answers_are_accepted_and_others_rejected(task):
    answers = ["42", r"\frac{3}{7}", "x^2-1", "(1, 2)", r"\text{Monday}", "-0.5", r"[0,\infty)", "2.50", "C"]
    assert task.self_check([Problem(f"problem {n}", answer) for n, answer in enumerate(answers)]) == []
    broken = task.self_check([Problem("its reference holds a brace }", "}")])
    assert len(broken) == 1
    assert "its own reference answer is rejected (no answer: nothing is boxed)" in broken[0]


def test_rows_become_problems(task):
    columns = {"problem": "question", "answer": "final"}
    assert task.read_row({"question": " 1+1? ", "final": 2}, columns) == (Problem("1+1?", "2"), "1+1?")
    assert task.read_row({"question": "1+1?", "final": 2.0}, columns)[0].answer == "2"
    solution = r"We add, and get \boxed{\frac{4}{2}}."
    assert task.read_row({"question": "1+1?", "final": solution}, columns)[0].answer == r"\frac{4}{2}"
