"""Predicting weights on a small run on disk: on a straight way to the teacher, a gate that sees finds the teacher."""

import json
import shutil
import time

import pandas as pd
import pytest
import torch

from effopd.artifacts.manifest_format import seal
from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.common.errors import ArtifactError, ConfigError, UserError
from effopd.models.models import load_model, load_tensors, save_tensors, weights_of
from effopd.results.export import export_state
from effopd.specs.read import read_spec
from effopd.stages.evaluate import evaluate
from effopd.stages.make_data import make_data
from effopd.stages.predict_weights import predict_weights
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.training.checkpoints import Point
from tiny_models import make_model
from typed_settings import ENGINE
from written_models import TASK, write_model

CPU = torch.device("cpu")
STEPS = (1, 2, 4)
PACE = 1 / 16  # of the way from base to teacher that a step goes
GATE = {"metric": "reverse_kl", "examples": 4, "source": "train", "samples": 1, "paired": True, "difficulty": {}}
SETTINGS = {"coefficients": [1, 3, 7], "search": "all", "accept_ties": False, "parameters": "all", "gate": GATE}
SPEC = {
    "extrapolation": SETTINGS,
    "parts": {},
    "states": list(STEPS),
    "sampling": {"temperature": 1.0, "max_new_tokens": 6},
    "engine": ENGINE,
    "precision": "float32",
    "task": TASK,
    "seed": 0,
    "step": 4,
    "code": "x",
}
EVALUATION = {"temperature": 1.0, "seed": 0, "samples": 1, "batch_size": 8, "max_new_tokens": 6, "precision": "float32"}


def between(share):
    """Weights on the line from the base to the teacher, at which every matrix differs from the base by rank 1."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, weight in weights_of(make_model(0)).items():
        left = 0.3 * torch.randn(weight.shape[:1], generator=generator)
        step = torch.outer(left, torch.randn(weight.shape[1:], generator=generator)) if weight.ndim == 2 else left
        found[name] = weight + share * step
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Data, prompts, base, teacher, and states at a quarter of the way to the teacher and before."""
    torch.set_num_threads(1)
    results = tmp_path_factory.mktemp("run") / "results"
    data, prompts = results / "data/arithmetic/manifest.json", results / "data/arithmetic/prompts-base/manifest.json"
    make_data(read_spec("make_data", {"task": {**TASK, "code": "x"}, "code": "x"}), data)
    base = write_model(results / "models/base", between(0))
    write_model(results / "models/teacher", between(1))
    tokenize_prompts(read_spec("tokenize_prompts", {"prompt": None, "code": "x"}), data, base, prompts)
    for step in STEPS:
        folder = results / f"runs/opd/seed0/state/{step}"
        save_tensors(folder / "weights.safetensors", between(step * PACE))
        write_manifest(
            folder / "state.json", kind="state", spec={"step": step}, parents={}, result={"step": step}, started=time.time(),
            files={"weights.safetensors": folder / "weights.safetensors"},
        )  # fmt: skip
    return results


def inputs(results):
    models = results / "models"
    prompts = results / "data/arithmetic/prompts-base/manifest.json"
    return {"base": models / "base/manifest.json", "teacher": models / "teacher/manifest.json", "prompts": prompts}


def predict(results, out, method="expo", validations=(), steps=STEPS, **settings):
    predict_weights(
        read_spec("predict_weights", {**SPEC, "method": method, "extrapolation": {**SETTINGS, **settings}}),
        states=[results / f"runs/opd/seed0/state/{step}/state.json" for step in steps],
        decisions=[],
        validations=validations,
        out=out / "prediction.json",
        device=CPU,
        **inputs(results),
    )
    return read_manifest(out / "prediction.json", "prediction")


@pytest.mark.parametrize("method", ["expo", "relex"])
def test_the_gate_finds_the_coefficient_that_reaches_the_teacher(results, tmp_path, method):
    found = predict(results, tmp_path, method)
    assert found.result["coefficient"] == 3  # a quarter of the way, and three times as much again
    assert [trial["coefficient"] for trial in found.result["trials"]] == [1, 3, 7]
    assert found.result["trials"][1]["value"] == pytest.approx(0, abs=1e-4)
    for name, weight in between(1).items():
        torch.testing.assert_close(load_tensors(found.file("weights.safetensors"))[name], weight, atol=1e-5, rtol=0)
    costs = pd.DataFrame(found.recorded["cost"])
    assert set(costs["stage"]) == {"gate: generate", "gate: score"}
    assert (costs["step"] == 4).all()


def test_predicted_weights_are_exported_with_the_base_that_they_were_predicted_from(results, tmp_path):
    """`effopd export`: of the models in the results folder, the one whose update was predicted."""
    found = predict(results, results / "predictions/ahead/seed0/4")
    export_state(results, "ahead", 0, 4, tmp_path / "model")
    exported = weights_of(load_model(tmp_path / "model", CPU))
    assert all(torch.equal(exported[n], t) for n, t in load_tensors(found.file("weights.safetensors")).items())
    with pytest.raises(UserError, match=r"Kept steps of this run and seed: \[4\]"):
        export_state(results, "ahead", 0, 2, tmp_path / "other")
    with pytest.raises(UserError, match=r"predictions/ahead/seed9/4/prediction.json .* seed: none. Of others: seed0.$"):
        export_state(results, "ahead", 9, 4, tmp_path / "other")
    with pytest.raises(UserError, match=r"runs/opd/seed9/state/4/state.json .* seed: none. Of others: seed0.$"):
        export_state(results, "opd", 9, 4, tmp_path / "other")
    with pytest.raises(UserError, match=r"runs/odp/.* seed: none. Of others: none.$"):
        export_state(results, "odp", 0, 4, tmp_path / "other")
    without = shutil.copytree(results, tmp_path / "without", ignore=shutil.ignore_patterns("base"))
    with pytest.raises(UserError, match="is not in .*models any more. Run the workflow again"):
        export_state(without, "ahead", 0, 4, tmp_path / "other")


def test_parameters_that_do_not_move_stay_as_the_last_state_has_them(results, tmp_path):
    found = predict(results, tmp_path, parameters=r"\.mlp\.", gate={**GATE, "metric": "always"})
    weights, last, far = load_tensors(found.file("weights.safetensors")), between(1 / 4), between(2)
    assert found.result["coefficient"] == 7
    assert found.recorded["cost"] == []
    for name, weight in weights.items():
        torch.testing.assert_close(weight, far[name] if ".mlp." in name else last[name], atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"`parameters` of a prediction: 'nothing' matches no parameter"):
        predict(results, tmp_path, parameters="nothing")


def validated(results, folder):
    """Evaluations of the base and the states on the validation split, with accuracies that rise along the way."""
    paths = []
    for step in (0, *STEPS):
        state = results / (f"runs/opd/seed0/state/{step}/state.json" if step else "models/base/manifest.json")
        out = folder / f"{step}.json"
        spec = {"evaluation": {**EVALUATION, "split": "validation"}, "engine": ENGINE, "task": TASK, "code": "x"}
        evaluate(
            read_spec("evaluate", spec), student=inputs(results)["base"], teacher=None, prompts=inputs(results)["prompts"], state=state,
            decision=None, out=out, device=CPU,
        )  # fmt: skip
        entry = json.loads(out.read_text())
        assert entry["result"]["completions"] == TASK["splits"]["validation"]
        assert entry["result"]["reverse_kl"] is None
        entry["result"]["accuracy"] = 0.1 + 0.1 * step
        out.write_text(json.dumps(seal(entry)))
        paths.append(out)
    return paths


def test_alpha_reads_off_where_accuracy_points_and_pays_for_the_validation(results, tmp_path):
    validations = validated(results, tmp_path)
    found = predict(
        results, tmp_path / "alpha", "alpha", list(reversed(validations)), gate={**GATE, "metric": "always"}
    )
    weights = load_tensors(found.file("weights.safetensors"))
    for name, weight in between(2).items():  # accuracy 0.5, and seven times what it rose by since 0.1
        wanted = weight if weight.ndim == 2 else between(1 / 4)[name]
        torch.testing.assert_close(weights[name], wanted, atol=1e-4, rtol=0)
    assert [row["stage"] for row in found.recorded["cost"]] == ["gate: validate"] * 4
    assert all(row["generated_tokens"] > 0 for row in found.recorded["cost"])
    assert {f"validation {step}" for step in (0, *STEPS)} <= found.parents.keys()


def test_what_is_missing_or_of_other_weights_is_refused(results, tmp_path):
    with pytest.raises(ArtifactError, match=r"the states given are of steps \[1, 2\], and \[1, 2, 4\] are needed"):
        predict(results, tmp_path, steps=(1, 2))
    validations = validated(results, tmp_path)
    with pytest.raises(ArtifactError, match="no evaluation given is of the weights after step 2"):
        predict(results, tmp_path, "alpha", [path for path in validations if path.name != "2.json"])


def test_predicted_weights_are_evaluated_like_a_state(results, tmp_path):
    found = predict(results, tmp_path)
    point = Point.open(found.path)
    assert (point.step, point.parents) == (4, {"state": found.fingerprint})
    out = tmp_path / "evaluation.json"
    spec = {"evaluation": {**EVALUATION, "split": "test"}, "engine": ENGINE, "task": TASK, "code": "x"}
    models = inputs(results)
    evaluate(
        read_spec("evaluate", spec), student=models["base"], teacher=models["teacher"], prompts=models["prompts"], state=found.path,
        decision=None, out=out, device=CPU,
    )  # fmt: skip
    evaluated = read_manifest(out, "evaluation")
    assert evaluated.result["step"] == 4
    assert evaluated.result["reverse_kl"] == pytest.approx(0, abs=1e-4)
    assert evaluated.parents["state"] == found.fingerprint
