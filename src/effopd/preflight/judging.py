"""Checks of the judge and of what there is to learn: the verifier, and the teacher's lead."""

from __future__ import annotations

from collections.abc import Sequence

from effopd.preflight.findings import Finding, failed, passed, warned
from effopd.tasks.base import Problem, Task

MOST_REJECTED = 0.1  # share of reference answers that a verifier may reject before the check fails
FEWEST_FINISHED = 0.5  # share of answers that must have ended for their accuracy to mean something


def check_verifier(check: str, task: Task, problems: Sequence[Problem]) -> Finding:
    """Reference answers get the reward 1; changed and empty answers get none."""
    references = [(problem, task.right_completion(problem)) for problem in problems]
    given = [(problem, right) for problem, right in references if right is not None]
    verdicts = task.verify_all([problem for problem, _ in given], [right for _, right in given])
    rejected = [(p, v) for (p, _), v in zip(given, verdicts, strict=True) if v.reward != 1]
    wrong = [(problem, task.wrong_completion(problem)) for problem in problems] + [(p, "") for p in problems]
    judged = task.verify_all([problem for problem, _ in wrong], [completion for _, completion in wrong])
    let_in = [(p, v) for (p, _), v in zip(wrong, judged, strict=True) if v.reward != 0]
    measured = (
        f"{len(given) - len(rejected)} of {len(given)} reference answers accepted, "
        f"{len(wrong) - len(let_in)} of {len(wrong)} wrong ones rejected"
    )
    if let_in:
        problem, verdict = let_in[0]
        return failed(
            check,
            f"{measured} (first: {_shown(problem)}: {verdict.reason})",
            "Rewards, gates and accuracies would count wrong answers.",
            "Check the `answer` and `tests` columns of the data, or fix the task's verifier.",
        )
    if rejected:
        problem, verdict = rejected[0]
        share = len(rejected) / len(given)
        judge = failed if share > MOST_REJECTED else warned
        return judge(
            check,
            f"{measured} (first: {_shown(problem)}: {verdict.reason})",
            "Right answers to these problems would count as wrong.",
            "Check the `answer`, `tests` and `solution` columns of the data, or leave these problems out.",
        )
    return passed(check, measured)


def check_accuracy(
    check: str, student: Sequence[float], teacher: Sequence[float], finished: tuple[float, float], most_tokens: int
) -> Finding:
    """The teacher answers more of the sampled problems than the student. Warns: with few problems it is a guess.

    `student` and `teacher` are rewards, `finished` the shares of their answers that ended within `most_tokens`.
    """
    scores = f"student {sum(student):g} of {len(student)}, teacher {sum(teacher):g} of {len(teacher)}"
    measured = f"{scores} right; {finished[0]:.0%} and {finished[1]:.0%} ended within {most_tokens} tokens"
    if min(finished) < FEWEST_FINISHED:
        return warned(
            check,
            measured,
            "Answers that were cut say nothing about who is better.",
            "Raise `preflight.max_new_tokens`, or `training.max_new_tokens` if that is what cut them.",
        )
    if sum(teacher) <= sum(student):
        return warned(
            check,
            measured,
            "The student can hardly gain accuracy from a teacher that has no more of it.",
            "Ask more problems (`preflight.problems`), or take another teacher.",
        )
    return passed(check, measured)


def _shown(problem: Problem) -> str:
    return repr(" ".join(problem.text.split())[:60])
