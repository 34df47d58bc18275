"""Answers with known verdicts, in both directions; and that nothing a completion contains ends a job."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from effopd.tasks import mathematics
from effopd.tasks.base import Problem, build_task
from effopd.tasks.choice import ChoiceTask
from effopd.tasks.mathematics import MathTask


@pytest.fixture(scope="module")
def math_task():
    return MathTask({})


EQUAL = [  # reference, answer
    # mixed numbers
    ("3/2", "1 1/2"), ("11/4", "2 3/4"), ("3/2", r"1\frac{1}{2}"), ("3/2", r"1 \frac{1}{2}"), ("3/2", r"1\ \frac{1}{2}"),
    ("3/2", r"1\tfrac12"), ("3/2", "1½"), ("3/2", "1 ½"), ("1/2", "½"), ("-3/2", "-1 1/2"), ("-3/2", "−1 1/2"), ("-5", "−5"), ("-3/2", r"-1\frac12"),
    ("1.5", "1 1/2"), ("1 1/2", "3/2"), ("1 1/2", "1.5"), ("1 1/2", "1 1/2"), ("3/2", "1 1/2 hours"),
    ("3/2", r"1 1/2 \text{ hours}"), ("3/2", r"\text{1 1/2 hours}"), ("11/4", r"2\frac{3}{4}\text{ cups}"),
    (r"\{\frac32, 2\}", r"\{1 1/2, 2\}"), ("x = 3/2", "x = 1 1/2"), ("1/2", r"\frac 1 2"), ("10", r"\binom 5 2"),
    # thousands, and numbers as they come from files
    ("1000", "1 000"), ("1 000", "1000"), ("1000", r"1\,000"), ("1000", "1{,}000"), ("10000", r"10,\!000"),
    ("1234567", "1 234 567"), ("1234567", "1,234,567"), ("1000", "1_000"), ("1,234.50", "1234.5"), ("0010", "10"),
    ("1.10", "1.1"), ("12345678901234567890123", "12345678901234567890123"), ("1" * 4301, "1" * 4301), ("0", "-0"),
    # decimals that stand for what they are rounded or cut off from
    ("0.333333", r"\frac13"), ("1/3", "0.333333333333"), ("2/3", "0.666667"), ("2/3", "0.66666666"), ("1/7", "0.142857"),
    (r"\pi", "3.14159265"), (r"\sqrt{2}", "1.414214"), ("e^2", "7.389056"), ("0.3", "0.30000000000000004"),
    ("3", "2.9999999999999996"), ("0.1", "1/10"), (r"\frac{x}{3}", "0.333333x"), ("0.3x", "0.1x+0.2x"),
    (r"\frac{\sqrt2}{2}", r"0.5\sqrt{2}"), ("1+2i", "1.0+2.0i"), ("0.0", "0"),
    # small, large and scientific
    ("10^{-9}", "0.000000001"), ("10^{-9}", "1e-9"), ("1e-07", "10^{-7}"), ("1e400", "10^{400}"), ("1e+300", "10^{300}"),
    (r"6.02\times 10^{23}", "6.02e23"), ("2e-1", "-1+2e"), ("[0,10^{-9}]", "[0,1e-9]"),
    # what math-verify knows
    (r"50\%", "0.5"), (r"50\%", "50"), (r"12.5\%", "0.125"), (r"33.3333\%", "1/3"), ("x+1", "x + 1"), ("y = 3x", "3x"),
    (r"\{0.5,1\}", r"\{1,\frac12\}"), ("(0.1,0.2)", r"(\frac1{10},\frac15)"), (r"\text{Monday}", "Monday"), ("$7$", "7."),
    (r"\begin{pmatrix}0.5\\2\end{pmatrix}", r"\begin{pmatrix}1/2\\2\end{pmatrix}"), ("5", r"5\text{ cm}"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{pmatrix} -\frac13 \\ \frac23 \end{pmatrix}"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix}1&2\\3&4\end{bmatrix}"), (r"\text{June 20}", "June 20"),
    ("A, B", r"\text{A,B}"), (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"), (r"\log_2 3", r"\log_{2}(3)"), ("2516_8", "2516_{8}"), ("2516_8", "2516"),
    ("2^{100}+1", "1267650600228229401496703205377"), ("90", "90°"), ("6", "2·3"), ("1/2", "1⁄2"), (r"\infty", "∞"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"), ("5", r"\text{5}"), ("0.5", r"\text{0.5}"),
    # repeating decimals, units without \\text, and signs as they are typed
    ("1/3", r"0.\overline{3}"), (r"0.\overline{3}", r"\frac13"), (r"\frac16", r"0.1\overline{6}"), ("4/33", r"0.\overline{12}"), ("4/3", r"1.\bar 3"),
    ("-1/3", r"-0.\bar{3}"), ("1/3", "0.(3)"), ("5", "5 cm"), ("12", "12 dollars"), ("12 dollars", "12"), ("5", "5 cm^2"), ("60", "60 km/h"), ("1", "1 dollar"),
    ("60", "60 miles per hour"), ("9", "9 square feet"), ("1.5", "1.5 hours"), ("1/2", "1/2 mile"), ("1000", "1,000 km"), ("-5", "–5"), ("-5", "‑5"),
    ("(-1,2)", "(–1, 2)"), (r"\sqrt{2}", "√2"), (r"12\sqrt{3}", "12√3"), (r"\sqrt{x+1}", "√(x+1)"), ("6", "2×3"), ("2000", "2 × 10^3"), (r"\frac{3\pi}{4}", "3π/4"),
    # relations
    ("> 204", ">204"), ("> 204", r"\gt 204"), (r"\geq 3", "≥ 3"), ("> 5", "5 <"), ("x < 5", "5 > x"), ("x > 204", "x>204"), (r"x \le 5", "x≤5"), ("204", "= 204"),
    ("5!", "120"), (r"\left(1,2\right)", "(1,2)"),
]  # fmt: skip
DIFFERENT = [
    ("11/2", "1 1/2"), ("23/4", "2 3/4"), ("12", "1 2"), ("3", "1 2"), ("6", "1 2 3"), ("123", "1 2 3"), ("2", "1 1/2"),
    ("-1/2", "-1 1/2"), ("11/2", "1½"), ("1/2", "1 1/2"), ("1", "1 000"), ("1234", "12 34"), ("1", "1_000"),
    ("0.0000001", "0.0000002"), ("10^{-20}", "10^{-21}"), ("10^{-9}", "10^{-12}"), ("1e-9", "1e-12"), ("0", "1e-9"),
    ("0", "0.000000001"), ("0", "10^{-9}"), ("10^{-9}", "0"), (r"\sqrt{2}\cdot 10^{-20}", r"\sqrt{3}\cdot 10^{-20}"),
    ("1/3", "0.333"), ("1/3", "0.33333"), ("2/3", "0.66"), (r"\pi", "3.14"), (r"\pi", "3.1416"), (r"\sqrt{2}", "1.41"),
    ("1.0000001", "1.0000002"), ("1", "1.0000001"), ("1", "0.9999999"), ("123456.0", "123456.4"), ("123456", "123456.4"),
    ("1234560", "1234567.9"), ("0.1234561", "0.1234567"), ("12345678901234567890123", "12345678901234567890124"),
    ("0.0000001x", "0.0000002x"), ("x+0.0000001", "x+0.0000002"), ("x=0.0000001", "x=0.0000002"),
    (r"\{0.0000001, 1\}", r"\{0.0000002, 1\}"), ("(0.1,0.2)", "(0.1000000001,0.2)"), ("[0,10^{-9}]", "[0,10^{-8}]"),
    (r"\begin{pmatrix}0.0000001\\2\end{pmatrix}", r"\begin{pmatrix}0.0000002\\2\end{pmatrix}"), ("1e400", "1e401"),
    (r"6.02\times 10^{23}", r"6.03\times 10^{23}"), (r"\infty", "1e999"), ("5", "²"), ("5", "5²"), ("3", "1, 2, 3"),
    ("(1,2)", "(2,1)"), ("[0,1)", "[0,1]"), ("1" * 4301, "1" * 4300), ("5", "\x00"), ("5", "\ud800"), ("5", "((((((("),
    ("5", r"\frac{"), ("5", "{" * 5 + "5" + "}" * 5 + "+1"), ("5", "9" * 300), ("5", "5" * 4301), ("2", "1+1="), ("1e400", "inf"),
    ("nan", "1"), ("5", "__import__('os')"), ("2^{100}", "2^{100}+1"), ("100!", "100!+1"), ("10^{100}+1/3", "10^{100}"), ("2516_8", "2516_7"),
    ("204", "> 204"), ("204", "$> 204$"), ("204", "< 204"), ("204", r"\geq 204"), ("204", "≤ 204"), ("204", r"\ne 204"), ("204", "204 >"), ("> 204", "204"), ("> 204", "< 204"),
    ("≥ 3", "> 3"), ("204", "x > 204"), ("1/3", "0.3"), ("0.3", r"0.\overline{3}"), ("33.3", r"33.\overline{3}"), ("4/33", r"0.1\overline{2}"), ("5", "–5"),
    ("-2", "3–5"), ("12", "12 million"), ("13", "12 dollars"), ("5", "5 or 6 cm"), ("5", "5 x"), (r"\sqrt{2}", "√3"), ("5x", "5 cm"),
    (r"\text{June 20}", "June 21"), (r"\log_2 3", "6"), (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reference", "answer", "reward"), [*((*pair, 1) for pair in EQUAL), *((*pair, 0) for pair in DIFFERENT)],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_answers_of_mathematics(math_task, reference, answer, reward):
    verdict = math_task.verify(Problem("?", reference), f"So it is $\\boxed{{{answer}}}$.")
    assert verdict.reward == reward, verdict
    assert verdict.reason


@pytest.mark.parametrize("answer", ["10^{10^{10}}", "1e999999999", "{" * 30 + "5" + "}" * 30 + "+1"])
def test_numbers_that_no_machine_holds(monkeypatch, answer):
    """The worker that compares is ended, and the next answer is judged by another one."""
    monkeypatch.setattr(mathematics, "SECONDS", 0.5)
    task = MathTask({})
    task.verify(Problem("?", "1"), r"\boxed{2-1}")  # may take its time
    started = time.monotonic()
    assert task.verify(Problem("?", "5"), f"\\boxed{{{answer}}}").reward == 0
    assert time.monotonic() - started < 20


FOUR = Problem("Which one?\n\nA. one\nB. two\nC. three\nD. four", "C")
RIGHT = [
    r"\boxed{C}", r"$\boxed{C}$.", r"\boxed{(C)}", r"\boxed{[C]}", r"\boxed{C.}", r"\boxed{C)}", r"\boxed{\text{C}}",
    r"\boxed{\mathrm{C}}", r"\boxed{\textbf{(C)}}", r"\boxed{\text{Option C}}", r"\boxed{Choice (C)}", r"\boxed{**C**}",
    r"\boxed{\text{Answer: C}}", r"\boxed{The answer is C}", r"\boxed{C) three}", r"\boxed{C. three}", r"\boxed{(C) three}",
    r"\boxed{C: three}", r"\boxed{\textbf{(C)}\ 12}", r"\boxed{\text{(C) } 12\%}", r"\boxed{C. Vitamin D.}", r"\fbox{C}",
    r"\boxed{E = mc^2}, so **Answer: C**", r"\boxed{A} no, \boxed{C}", r"\boxed{B}. No. Answer: C", r"\boxed{C} = \boxed{42}",
    r"\boxed{C}. The answer B is wrong.", r"\boxed{42}, so the answer is C.", r"Answer: B, hence \boxed{C}", r"\boxed{\boxed{C}}",
    "Answer: C", "answer:C", "Answer: C.", "**Answer: C**", "**Answer:** C", "**Answer**: $C$", r"Answer: $\text{C}$",
    r"Answer: \(C\)", "The answer is (C).", "The answer is **(C)**", "Final answer: Option C", "**Final Answer: Option C**",
    "The correct option is C.", "The best choice: C", "the correct answer is C because", "The answer is (C), as A is wrong.",
    "The answer is C and D is wrong.", "Answer: C (D is a distractor)", "Answer\nC", "The correct answer is:\n\n**C. three**",
    "Answer: D. Wait. Answer: C", "Answer: C. Answer: E", "Answer: C\nD is wrong", "Answer: C) three",
    r"\boxed{\text{C}: three}", r"\boxed{C\text{. three}}",
    'Answer: "C"', "Answer: “C”", "Answer: 'C'", 'The answer is "C".', r'\boxed{"C"}', r"\boxed{'C'}", "Option C is correct", "So option C is correct.",
    "Option (C) is the correct answer.", "**Option C** is correct because A is not.", "(C) is correct.", "Choice C is the best choice, D is not.", "Option D is correct. No: option C is correct.",
    "<answer>C</answer>", "<answer> C </answer>", "<answer>(C)</answer>", "<answer>C. three</answer>", "<ANSWER>**C**</ANSWER>", "<answer>C", "<answer>D</answer> no <answer>C</answer>",
    r"<answer>\boxed{C}</answer>", r"<answer>$C$</answer>", r"\boxed{D}, no: <answer>C</answer>", "Option B is wrong. Option C is correct.",
]  # fmt: skip
WRONG = [
    "", "C", r"\boxed{}", r"\boxed{C", r"\boxed{D}", r"\boxed{C, D}", r"\boxed{C,D}", r"\boxed{C/D}", r"\boxed{C D}",
    r"\boxed{CD}", r"\boxed{C \text{ and } D}", r"\boxed{C or D}", r"\boxed{\text{C}\text{D}}", r"\boxed{C. three, D. four}",
    r"\boxed{(C) and (D)}", r"\boxed{A, B, C, D}", r"\boxed{C = 5}", r"\boxed{C \to D}", r"\boxed{C'}", r"\boxed{C_2}",
    r"\boxed{E}", r"\boxed{E = mc^2}", r"\boxed{E = mc^2}, so **Answer: D**", r"\boxed{C, E}", r"\boxed{C}, no: \boxed{D}",
    r"\boxed{Carbon}", r"\boxed{42}", r"\boxed{²}", "Answer: D", "Answer: E", "Answer: C, D", "Answer: C or D", "Answer: C/D",
    "Answer: (C) and (D)", "Answer: C'", "Answer: C++", "Answer: Carbon", "The answer is not C", "The answer is a number.",
    'Answer: "D"', '"C"', "Answer: C'", "Option D is correct", "Option C is incorrect.", "Option C is not correct.", "Neither option D nor option C is correct.", "if option C is correct, then",
    "Option C is correct about the first part", "Statement C is correct.", "C is correct.", "<answer>D</answer>", "<answer></answer>", "<answer>C, D</answer>", "<answer>Carbon</answer>",
    "<answer>C</answer> no: <answer>D</answer>", "<answer>42</answer>", "Option C is correct. No: option D is correct.",
    "The answer is A number", "Answer: I think so", "The answer C is wrong", "Answer: C. No. Answer: D", "answer: \u216d",
]  # fmt: skip


@pytest.mark.parametrize(("completion", "reward"), [*((c, 1) for c in RIGHT), *((c, 0) for c in WRONG)])
def test_answers_of_choice(completion, reward):
    verdict = ChoiceTask({"seed": 0}).verify(FOUR, completion)
    assert verdict.reward == reward, verdict
    assert verdict.reason


@pytest.mark.parametrize(
    "ending", ["", ".", "!", " (one)", " - one", " — one", ": one", ", as it is one", " because it is one"]
)
@pytest.mark.parametrize("letter", "ABCDEFGHIJ")
def test_every_letter_is_stated_alike(letter, ending):
    """`A` and `I` are words, too."""
    problem = Problem("Which?\n\n" + "\n".join(f"{one}. choice {one}" for one in "ABCDEFGHIJ"), letter)
    assert ChoiceTask({"seed": 0}).verify(problem, f"The answer is {letter}{ending}").reward == 1


@pytest.mark.parametrize("letter", "ABCDEFGHIJ")
@pytest.mark.parametrize("count", [2, 4, 10])
def test_letters_beyond_the_choices_are_no_answers(count, letter):
    lines = [f"{'ABCDEFGHIJ'[n]}. choice {n}\n\nZ. none of these" for n in range(count)]
    problem = Problem("Which, given\n\nA. this\nB. that\nC. both\nD. none\nE. all?\n\n" + "\n".join(lines), "A")
    reason = ChoiceTask({"seed": 0}).verify(problem, f"Answer: B. \\boxed{{{letter}}}").reason
    last = letter if letter in "ABCDEFGHIJ"[:count] else "B"
    assert reason == ("right" if last == "A" else f"answers {last}, not the reference")


SUMS = [
    ("15,20#20", 1), ("#20", 1), ("#0020", 1), ("#" + "0" * 5000 + "20", 1), ("#21", 0), ("#-20", 0), ("#+20", 0), ("# 20", 0),
    ("#20 ", 0), ("#2_0", 0), ("#20.0", 0), ("#²", 0), ("#2²", 0), ("#٢٠", 0), ("#２０", 0), ("#Ⅻ", 0), ("#" + "9" * 4300, 0),
    ("#" + "9" * 4301, 0), ("#" + "9" * 100_000, 0), ("#", 0), ("", 0), ("20", 0), ("#20#20", 0), ("#0x14", 0), ("#\x00", 0),
    ("#\ud800", 0), ("#1e1", 0), ("#0", 0), ("#" + "0" * 5000, 0),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "reward"), SUMS, ids=lambda value: str(value)[:20])
def test_answers_of_arithmetic(completion, reward):
    assert build_task({"name": "arithmetic"}).verify(Problem("7+8+5=", "20"), completion).reward == reward


PIECES = ["answer", "Answer:", "is", "correct option", r"\boxed{", "}", "{", r"\text{", r"\frac", "^", "_", "#", "C", "A", "I",
          "(", ")", " ", "\n", "$", "**", ",", "and", "²", "½", "1", "0.5", "e-9", "10^", "!", r"\\", "%", "\x00", "\ud800"]  # fmt: skip
COMPLETIONS = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=30).map("".join)


@settings(max_examples=200, deadline=None)
@given(COMPLETIONS, st.sampled_from([FOUR, Problem("?", "C"), Problem("", ""), Problem("\n\nA. ", "²")]))
def test_no_text_ends_the_judging_of_choice_and_arithmetic(completion, problem):
    assert ChoiceTask({"seed": 0}).verify(problem, completion).reward in (0, 1)
    assert build_task({"name": "arithmetic"}).verify(Problem("1+2=", "3"), completion).reward in (0, 1)


@pytest.mark.parametrize(
    "completion",
    ["answer" + " " * 50_000, "answer" + "\n" * 50_000 + "x", "answer: C" + ",D" * 20_000 + "x", "answer:" * 20_000, "answer is" * 20_000,
     "correct" + " " * 50_000 + "x", "<answer>" * 20_000, "<answer>" + " " * 50_000 + "x", "option" + " " * 50_000 + "x", "option C is" + " " * 50_000 + "x", r"\boxed{" * 20_000 + "C" + "}" * 20_000, r"\boxed{" + "the " * 20_000 + "}", r"\boxed{C" + " " * 50_000 + "x}",
     r"\boxed{" + "C," * 20_000 + "}", "answer: A" + " " * 50_000 + "x", "\\text" * 20_000],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_long_completions_take_no_longer_than_they_are(completion):
    started = time.process_time()
    ChoiceTask({"seed": 0}).verify(FOUR, completion)
    assert time.process_time() - started < 2


@settings(max_examples=60, deadline=None)
@given(COMPLETIONS, st.sampled_from(["5", "1/2", r"\{1,2\}", "x+1", "1 1/2", "1e-9", "²", "\ud800", "}", ""]))
@example("\u2028", "5")
def test_no_text_ends_the_judging_of_mathematics(math_task, answer, reference):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mathematics, "SECONDS", 1.0)
        assert math_task.verify(Problem("?", reference), f"\boxed{{{answer}}}").reward in (0, 1)


@pytest.mark.parametrize(
    "reference", ["5", "-1/2", "0.5", "1/0", "½", "1e999999999", "9" * 5000, "9" * 30, "1 1/2", "{", "nan", "-7919.25"]
)
def test_a_wrong_answer_is_made_in_no_time(math_task, monkeypatch, reference):
    monkeypatch.setattr(mathematics, "SECONDS", 1.0)
    started = time.process_time()
    wrong = math_task.wrong_completion(Problem("?", reference))
    assert time.process_time() - started < 1
    assert math_task.verify(Problem("?", reference), wrong).reward == 0
