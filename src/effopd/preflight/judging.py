"""Checks of the judges and of what there is to learn: the verifier, the teacher's lead, and what gates can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from effopd.extrapolation.search import LONGEST_STEP
from effopd.preflight.findings import Finding, failed, passed, warned
from effopd.preflight.gate_sight import CARRIED, POWER, CountingGate, upper_accuracy
from effopd.specs.preflight import CheckedGate
from effopd.tasks.base import Problem, Task

MOST_REJECTED = 0.1  # share of reference answers that a verifier may reject before the check fails
FEWEST_FINISHED = 0.5  # share of answers that must have ended for their accuracy to mean something
# Below five, the rule of thumb for counts, their spread is half of what is counted, and one candidate in eight ties.
FEWEST_RIGHT = 5.0
# What ties may add to the chance that noise is carried to the largest coefficient. Not the chance itself: a search
# over few coefficients ends at the last of them often enough without, however many examples there are.
MOST_BY_TIES = 0.2


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


def check_gate(
    check: str, student: Sequence[float], gates: Sequence[CheckedGate], finished: float, most_tokens: int
) -> Finding:
    """Gates that count right answers see enough of them, at the student's accuracy, to tell a jump from noise.

    Warns: what they decide later, of a better student, is not known here. Where some are blind, these alone are named.
    `student` are rewards of the sampled problems, `finished` the share of answers that ended within `most_tokens`.
    """
    right, asked = sum(student), len(student)
    accuracy, most = right / asked, upper_accuracy(right, asked)
    blind = [gate for gate in gates if _is_blind(gate, accuracy)]
    measured = f"{right:g} of {asked} right: " + "; ".join(_sight(gate, accuracy, most) for gate in blind or gates)
    if not blind:
        return passed(check, measured)
    if finished < FEWEST_FINISHED:
        return warned(
            check,
            f"{measured}; {finished:.0%} of the answers ended within {most_tokens} tokens",
            "Answers that were cut count as wrong, here as in a gate.",
            "Raise `preflight.max_new_tokens`, or `training.max_new_tokens` if that is what cut them.",
        )
    rarely = any(gate.examples * gate.samples * accuracy < FEWEST_RIGHT for gate in blind)
    ways = ["more `extrapolation.gate.examples`" if rarely else "harder problems (`extrapolation.gate.difficulty`)"]
    if any(_counting(gate).accept_ties for gate in blind):
        ways.append("`accept_ties: false`")
    ways.append("`gate.metric: reverse_kl`")
    if rarely:
        ways.append("a longer supervised start of the student")
    return warned(
        check,
        measured,
        "Such a gate hardly tells a jump that helps from one that destroys the student.",
        f"Take {', '.join(ways[:-1])} or {ways[-1]}.",
    )


def _is_blind(gate: CheckedGate, accuracy: float) -> bool:
    """Whether a gate expects too few right answers, or leaves too much to ties."""
    if gate.examples * gate.samples * accuracy < FEWEST_RIGHT:
        return True
    # Paired, what ties is a candidate that answers alike: no number of examples changes that, and it does no harm.
    if gate.paired or gate.search not in CARRIED:
        return False
    without = replace(gate, accept_ties=False)
    return _carried(gate, accuracy) - _carried(without, accuracy) > MOST_BY_TIES


def _counting(gate: CheckedGate) -> CountingGate:
    """The gate as its search asks it: a line search takes no ties."""
    return CountingGate(gate.examples * gate.samples, gate.accept_ties and gate.search != "line", gate.paired)


def _carried(gate: CheckedGate, accuracy: float) -> float:
    return CARRIED[gate.search](_counting(gate), accuracy, len(gate.coefficients))


def _sight(gate: CheckedGate, accuracy: float, most: float) -> str:
    """What a gate can tell at an accuracy, which is at most `most`, in words."""
    counting = _counting(gate)
    expected, at_most = (f"{counting.answers * share:.1f}" for share in (accuracy, most))
    size = f"{gate.examples} examples" + (f", {gate.samples} answers each" if gate.samples > 1 else "")
    noise = "a candidate that answers alike" if gate.paired else "pure noise"
    text = (
        f"the gate of {', '.join(f'`{run}`' for run in gate.runs)} ({size}) expects {expected} right answers "
        f"({at_most} at most, 95 % sure); {noise} is accepted with probability {counting.chance(accuracy):.2f}"
    )
    if gate.search in CARRIED:
        last = LONGEST_STEP if gate.search == "line" else gate.coefficients[-1]
        text += f" at a candidate, and carried to coefficient {last:g} with probability {_carried(gate, accuracy):.2f}"
    gain = counting.visible_gain(accuracy)
    if gain > 0:  # neither none, where everything is accepted, nor unknown
        text += f"; a gain of {100 * gain:.1f} points is accepted with probability {POWER:g}"
    return text


def _shown(problem: Problem) -> str:
    return repr(" ".join(problem.text.split())[:60])
