"""What tokens cost in arithmetic, against counting by hand and against the estimate of an architecture."""

import pandas as pd
import pytest

from effopd.artifacts.cost import cost_row
from effopd.evaluation.flops import ledger_flops
from effopd.workflow.estimates.architecture import Architecture

STUDENT, TEACHER = 10, 1000


def flops_of(stage, **tokens):
    return ledger_flops(pd.DataFrame([cost_row(stage, 1, 0.5, **tokens)]), STUDENT, TEACHER).iloc[0]


@pytest.mark.parametrize(
    ("stage", "tokens", "expected"),
    [
        ("generate rollouts", {"generated": 7}, 2 * STUDENT * 7),
        ("score rollouts", {"scored": 7}, 2 * TEACHER * 7),
        ("update policy", {"trained": 7}, 6 * STUDENT * 7),
        ("gate: generate", {"generated": 7}, 2 * STUDENT * 7),
        ("gate: score", {"scored": 7, "judged": 9}, 2 * STUDENT * 9 + 2 * TEACHER * 7),
    ],
)
def test_each_stage_counts_the_models_that_it_runs(stage, tokens, expected):
    assert flops_of(stage, **tokens) == expected


def test_a_decision_is_the_sum_of_its_rows():
    rows = [cost_row("generate rollouts", 1, 1.0, generated=3), cost_row("gate: score", 1, 1.0, scored=5, judged=5)]
    assert ledger_flops(pd.DataFrame(rows), STUDENT, TEACHER).tolist() == [60, 2 * 1010 * 5]


def test_a_forward_pass_costs_what_an_architecture_says_but_for_attention():
    shape = Architecture(64, 192, 4, 4, 2, 16, 16, tied=True)
    assert flops_of("generate rollouts", generated=1) * shape.parameters / STUDENT == shape.forward_flops(0)
