"""What an evaluation keeps: the same problems whatever is evaluated, the verifier's own texts, and nothing else changes."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from effopd.artifacts.manifests import read_manifest
from effopd.data.prompts import load_problems
from effopd.data.verification import completion_texts, verify_rollouts
from effopd.evaluation import measure
from effopd.evaluation.kept_samples import chosen_positions
from effopd.evaluation.sample_files import SUFFIX, read_samples
from effopd.results.verify import verify
from effopd.specs.read import read_spec
from effopd.stages.evaluate import evaluate
from effopd.workflow.job_specs import Plan
from small_results import CONFIG, SmallResults

KEPT = {**CONFIG, "evaluation": {"baseline": "effopd", "kept_samples": 3, "samples": 2, "batch_size": 4}}
STATE = "runs/effopd/seed0/state/{}/state.json"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "results"
    SmallResults(folder, KEPT).make()
    return folder


def evaluated(results: Path, out: Path, state: str = STATE.format(1), model: str = "base", plan=None, **changes):
    """The manifest of an evaluation whose settings are the plan's, but for `changes`."""
    spec = json.loads((plan or Plan(KEPT)).evaluate_run_spec("effopd"))
    spec["evaluation"] |= {"max_new_tokens": 6, **changes}
    evaluate(
        read_spec("evaluate", spec),
        student=results / f"models/{model}/manifest.json",
        teacher=results / "models/teacher/manifest.json",
        prompts=results / f"data/arithmetic/prompts-{model}/manifest.json",
        state=results / state,
        decision=None,
        out=out,
        device=torch.device("cpu"),
    )
    return read_manifest(out, "evaluation")


def test_the_same_problems_for_all_and_what_they_are(results, tmp_path):
    found = [
        read_samples(evaluated(results, tmp_path / f"{number}.json", state, model, seed=0, precision=precision))
        for number, (state, model, precision) in enumerate(
            [
                (STATE.format(1), "base", "float32"),
                (STATE.format(2), "base", "float32"),
                ("models/teacher/manifest.json", "teacher", None),
            ]
        )
    ]
    rows = [[sample.row for sample in samples] for samples in found]
    assert rows[0] == rows[1] == rows[2] == sorted(rows[0])
    assert len(rows[0]) == 3
    problems = load_problems(read_manifest(results / "data/arithmetic/manifest.json"), "test")
    for samples in found:
        assert [(s.problem, s.answer) for s in samples] == [(problems[r].text, problems[r].answer) for r in rows[0]]
        assert all(sample.prompt.endswith(sample.problem) for sample in samples)
    first, second, teacher = ([sample.completion for sample in samples] for samples in found)
    assert first == teacher != second, "this state has the teacher's weights, and problems their own random numbers"
    other = read_samples(evaluated(results, tmp_path / "other.json", seed=3))
    assert [sample.row for sample in other] != rows[0], "the choice is the seed's"


def test_texts_and_outcomes_are_what_the_verifier_saw(results, tmp_path, monkeypatch):
    seen = []

    def spied(task, tokenizer, problems, rollouts):
        outcomes = verify_rollouts(task, tokenizer, problems, rollouts)
        seen.extend(
            zip((p.text for p in problems), completion_texts(tokenizer, rollouts), *outcomes.values(), strict=True)
        )
        return outcomes

    monkeypatch.setattr(measure, "verify_rollouts", spied)
    found = evaluated(results, tmp_path / "2.json")
    samples, items = read_samples(found), pd.read_parquet(found.file("2.items.parquet"))
    assert len(seen) == len(items) == 2 * 6
    assert Counter((s.problem, s.completion, s.reward, s.reason) for s in samples) <= Counter(seen)
    for sample in samples:
        first = items[items["index"] == sample.row].iloc[0]  # no prompt is left out here, so rows are positions
        assert (sample.reward, sample.reason) == (first["reward"], first["reason"])
        assert (sample.tokens, sample.finished) == (first["tokens"], first["finished"])


def test_what_is_kept_changes_nothing_else_and_is_deterministic(results, tmp_path):
    whole = {count: evaluated(results, tmp_path / f"{count}/2.json", kept_samples=count) for count in (0, 3, 100)}
    assert list(whole[0].files) == ["2.items.parquet"]
    assert list(whole[3].files) == ["2.items.parquet", f"2{SUFFIX}"]
    for found in whole.values():
        assert found.files["2.items.parquet"] == whole[0].files["2.items.parquet"]
        assert found.result == whole[0].result
    assert [sample.row for sample in read_samples(whole[100])] == [*range(6)]
    assert set(read_samples(whole[3])) < set(read_samples(whole[100]))
    again = evaluated(results, tmp_path / "again/2.json")
    assert again.files == whole[3].files
    assert read_samples(whole[0]) is None


def test_a_file_of_samples_that_are_not_kept_any_more_goes(results, tmp_path):
    evaluated(results, tmp_path / "2.json")
    assert (tmp_path / f"2{SUFFIX}").exists()
    evaluated(results, tmp_path / "2.json", kept_samples=0)
    assert not (tmp_path / f"2{SUFFIX}").exists()


def test_the_artifact_verifies_and_damage_to_the_texts_is_found(results, tmp_path):
    copy = shutil.copytree(results, tmp_path / "results")
    out = copy / "evaluation/effopd/seed0/2.json"
    evaluated(copy, out, STATE.format(2))
    assert not verify(copy).problems
    with (out.with_suffix(SUFFIX)).open("ab") as file:
        file.write(b"x")
    (problem,) = verify(copy).problems
    assert f"2{SUFFIX}" in problem


def test_prompts_that_are_left_out_change_no_other_choice():
    whole, some = range(100), [row for row in range(100) if row % 7]
    chosen = [whole[position] for position in chosen_positions(0, whole, 20)]
    left = [some[position] for position in chosen_positions(0, some, 20)]
    assert set(chosen) - {row for row in range(100) if row % 7 == 0} <= set(left)
    assert chosen == sorted(chosen) != [*range(20)]


@given(st.lists(st.integers(0, 10**6), unique=True), st.integers(0, 8), st.integers(0, 3))
def test_choices_grow_and_hold_each_position_once(rows, count, seed):
    fewer, more = chosen_positions(seed, rows, count), chosen_positions(seed, rows, count + 1)
    assert set(fewer) <= set(more)
    assert len(set(fewer)) == len(fewer) == min(count, len(rows))


def test_the_number_is_in_the_spec_of_test_evaluations_alone():
    """Predictions are made from evaluations on the validation split, and interventions keep none."""

    def specs(count):
        plan = Plan({**CONFIG, "evaluation": {"baseline": "effopd", "kept_samples": count}, "dynamics": {}})
        return {
            "run": plan.evaluate_run_spec("effopd"),
            "model": plan.evaluate_model_spec(),
            "validation": plan.evaluate_run_spec("effopd", split="validation"),
            "interventions": plan.spec("evaluate_interventions", subject="effopd/seed0"),
            "training": plan.spec("train_segment", run="effopd", seed=0, step=2),
            "gate": plan.spec("evaluate_candidates", run="effopd", seed=0, step=1),
            "tables": plan.spec("make_tables"),
        }  # fmt: skip

    four, none = specs(4), specs(0)
    assert {name for name in four if four[name] != none[name]} == {"run", "model"}
    assert json.loads(four["run"])["evaluation"]["kept_samples"] == 4
    for name, stage in {"run": "evaluate", "interventions": "evaluate_interventions"}.items():
        assert read_spec(stage, four[name])
