"""Results folders side by side, where of what they hold a few manifests are enough."""

import time

import yaml

from config_overlays import with_other
from effopd.artifacts.manifests import write_manifest
from effopd.results.compare import compare
from effopd.workflow.job_specs import Plan

PLAN = Plan(with_other())  # evaluated on the task `longer` too, with three seeds


def make_results(folder, accuracies, code):
    """A folder whose run `opd` is evaluated at step 1, and at its last on another task with an accuracy of each seed."""
    last = PLAN.boundaries("opd")[-1]
    for seed, accuracy in enumerate(accuracies):
        for name, result in (
            (f"evaluation/opd/seed{seed}/1.json", {"accuracy": 0.5, "reverse_kl": 0.1}),
            (f"evaluation/tasks/longer/opd/seed{seed}/{last}.json", {"accuracy": accuracy, "reverse_kl": None}),
        ):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {"kind": "evaluation", "spec": {"code": code}, "result": result}
            write_manifest(path, parents={}, files={}, started=time.time(), **about)
    (folder / "config.yaml").write_text(yaml.safe_dump(PLAN.resolved_config()))
    return folder


def test_other_tasks_are_compared_by_the_seeds_that_both_have(tmp_path):
    a = make_results(tmp_path / "a", [0.25, 0.5, 0.75], "x")
    b = make_results(tmp_path / "b", [0.5, 0.875], "y")
    lines = compare(a, b)
    wanted = 2 + 3 * len(PLAN.runs)  # of two models, and of each run with three seeds
    assert f"{wanted - 3} of its evaluations on other tasks)" in lines[0]
    assert f"{wanted - 2} of its evaluations on other tasks)" in lines[1]
    assert ["code of evaluations on other tasks", "x", "y"] in [line.rsplit(maxsplit=2) for line in lines]
    (line,) = [line for line in lines if line.startswith("accuracy on longer: ")]
    assert line.startswith("accuracy on longer: 37.5 % in A, 68.8 % in B (B - A: +31.2 (")  # not of seed 2
