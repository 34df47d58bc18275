"""Manifests, fingerprints and states: whatever is not whole or not itself is refused."""

import errno
import json
import time
from pathlib import Path

import pytest
import torch

from effopd.artifacts import fingerprints
from effopd.artifacts.fingerprints import canonical_json, code_digest
from effopd.artifacts.locks import claim_results
from effopd.artifacts.manifests import atomic_path, read_manifest, write_manifest, write_text
from effopd.common.errors import ArtifactError, UserError, describe_os_error
from effopd.models.models import save_tensors
from effopd.training.checkpoints import Point, save_state
from effopd.training.resume import ResumePoint
from effopd.training.trainer import OptimizerState

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}
MOMENTS = {f"{m}.{n}": t * 0.5 for n, t in WEIGHTS.items() for m in ("exp_avg", "exp_avg_sq")}


def make_state(folder, step=4, spec=None):
    folder.mkdir(parents=True, exist_ok=True)
    files = save_state(folder, WEIGHTS, OptimizerState(step, MOMENTS))
    return write_manifest(
        folder / "state.json",
        kind="state",
        spec=spec or {"seed": 0},
        parents={"data": "d"},
        files=files,
        result={"step": step, "optimizer_steps": step},
        started=time.time(),
    )


def test_a_state_is_read_back_whole(tmp_path):
    written = make_state(tmp_path)
    point = Point.open(tmp_path / "state.json")
    assert point.manifest == written
    assert point.step == 4
    for name, tensor in WEIGHTS.items():
        assert torch.equal(point.weights()[name], tensor)
    state = point.optimizer()
    assert state.step == 4
    assert all(torch.equal(state.moments[name], MOMENTS[name]) for name in MOMENTS)


def test_factors_of_lora_go_with_the_moments(tmp_path):
    factors = {"q.lora_A": torch.ones(2, 3), "q.lora_B": torch.zeros(3, 2)}
    moments = {f"exp_avg.{name}": tensor * 0.5 for name, tensor in factors.items()}
    optimizer = OptimizerState(4, moments, factors)
    files = save_state(tmp_path, WEIGHTS, optimizer)
    write_manifest(
        tmp_path / "state.json",
        kind="state",
        spec={},
        parents={},
        files=files,
        result={"step": 4, "optimizer_steps": 4},
        started=time.time(),
    )
    ResumePoint(tmp_path / "resume", "f").save(WEIGHTS, optimizer, [])
    for found in (Point.open(tmp_path / "state.json").optimizer(), ResumePoint(tmp_path / "resume", "f").load()[1]):
        assert found.step == 4
        for held, written in ((found.moments, moments), (found.factors, factors)):
            assert held.keys() == written.keys()
            assert all(torch.equal(held[name], tensor) for name, tensor in written.items())


def test_a_truncated_an_altered_and_a_missing_file_are_refused(tmp_path):
    make_state(tmp_path)
    weights = tmp_path / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(
        ArtifactError, match=rf"weights.safetensors is truncated or altered \({len(whole) - 5} bytes, not"
    ):
        Point.open(tmp_path / "state.json").weights()
    weights.write_bytes(whole[:-5] + b"12345")
    with pytest.raises(
        ArtifactError, match=r"altered \(its sha256 is not the recorded one\). Delete .*state.json and run"
    ):
        Point.open(tmp_path / "state.json").weights()
    weights.unlink()
    with pytest.raises(ArtifactError, match="weights.safetensors is missing"):
        Point.open(tmp_path / "state.json").weights()
    assert len(list(read_manifest(tmp_path / "state.json").problems())) == 1


def test_a_manifest_that_was_edited_is_refused(tmp_path):
    make_state(tmp_path)
    entry = json.loads((tmp_path / "state.json").read_text())
    entry["spec"]["seed"] = 1
    (tmp_path / "state.json").write_text(json.dumps(entry))
    with pytest.raises(ArtifactError, match="its fingerprint .* does not match what it records"):
        read_manifest(tmp_path / "state.json")
    (tmp_path / "state.json").write_text(json.dumps(entry)[:-20])
    with pytest.raises(ArtifactError, match="is damaged"):
        read_manifest(tmp_path / "state.json")
    with pytest.raises(ArtifactError, match="does not exist. Run the workflow"):
        read_manifest(tmp_path / "none.json")


def test_a_decision_of_another_state_is_refused(tmp_path):
    make_state(tmp_path / "here")
    other = make_state(tmp_path / "there", spec={"seed": 1})
    decision = tmp_path / "decision.json"
    write_manifest(
        decision, kind="decision", spec={}, parents={"state": other.fingerprint}, result={"coefficient": 0}, started=0.0
    )
    with pytest.raises(ArtifactError, match="was decided for another state"):
        Point.open(tmp_path / "here/state.json", decision)
    assert Point.open(tmp_path / "there/state.json", decision).parents.keys() == {"state", "decision"}


def test_an_accepted_candidate_replaces_the_weights_and_not_the_optimizer(tmp_path):
    state = make_state(tmp_path)
    accepted = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    (tmp_path / "trigger").mkdir()
    save_tensors(tmp_path / "trigger/weights.safetensors", accepted)
    write_manifest(
        tmp_path / "trigger/decision.json",
        kind="decision",
        spec={},
        parents={"state": state.fingerprint},
        files={"weights.safetensors": tmp_path / "trigger/weights.safetensors"},
        result={"coefficient": 2},
        started=0.0,
    )
    point = Point.open(tmp_path / "state.json", tmp_path / "trigger/decision.json")
    assert torch.equal(point.weights()["a"], accepted["a"])
    assert torch.equal(point.raw_weights()["a"], WEIGHTS["a"])
    assert torch.equal(point.optimizer().moments["exp_avg.a"], MOMENTS["exp_avg.a"])


def test_fingerprints_do_not_depend_on_times_but_on_spec_and_parents(tmp_path):
    first = make_state(tmp_path / "1")
    second = make_state(tmp_path / "2")
    assert first.fingerprint == second.fingerprint
    assert first.files == second.files
    assert make_state(tmp_path / "3", spec={"seed": 2}).fingerprint != first.fingerprint


def test_resume_points_are_for_one_fingerprint_and_survive_a_torn_file(tmp_path):
    path = tmp_path / "resume.safetensors"
    ResumePoint(path, "f").save(WEIGHTS, OptimizerState(7, MOMENTS), [{"step": 7, "loss": 0.25}])
    weights, optimizer, rows = ResumePoint(path, "f").load()
    assert torch.equal(weights["a"], WEIGHTS["a"])
    assert optimizer.step == 7
    assert rows == [{"step": 7, "loss": 0.25}]
    assert optimizer.moments.keys() == MOMENTS.keys()
    assert optimizer.factors == {}
    assert ResumePoint(path, "g").load() is None
    path.write_bytes(path.read_bytes()[:30])
    assert ResumePoint(path, "f").load() is None
    for facts in ({"history": "[]"}, {"step": "7"}, {"step": "x", "history": "[]"}, {"step": "7", "history": "["}):
        save_tensors(path, WEIGHTS, {"fingerprint": "f", **facts})
        assert ResumePoint(path, "f").load() is None, facts


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "x", "old")
    with pytest.raises(RuntimeError, match="boom"), atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError("boom")
    assert (tmp_path / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_canonical_json_ignores_order_and_refuses_what_json_lacks():
    assert canonical_json({"b": 1, "a": [1.0e-5]}) == canonical_json({"a": [1.0e-5], "b": 1}) == '{"a":[1e-05],"b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical_json({"a": float("nan")})


def test_the_code_digest_sees_code_and_not_its_explanation(monkeypatch):
    sources = {
        "effopd.stages.a": '"""Doc."""\nfrom effopd import b\nfrom effopd.artifacts import locks\nx = 1  # why\n',
        "effopd.b": "def f():\n    return 2\n",
    }
    monkeypatch.setattr(fingerprints, "_source", lambda module: sources[module])
    monkeypatch.setattr(fingerprints, "module_file", lambda name: Path(f"{name}.py") if name in sources else None)

    def digest():
        for cached in (fingerprints.code_digest, fingerprints._closure, fingerprints._tree_digest):
            cached.cache_clear()
        return fingerprints.code_digest("effopd.stages.a")

    try:
        before = digest()
        sources["effopd.stages.a"] = "from effopd import b\nfrom effopd.artifacts import locks\n\nx = 1\n"
        sources["effopd.b"] = 'def f():\n    """Two."""\n    return 2\n'
        assert digest() == before
        sources["effopd.b"] = "def f():\n    return 3\n"
        assert digest() != before
    finally:
        for cached in (fingerprints.code_digest, fingerprints._closure, fingerprints._tree_digest):
            cached.cache_clear()


def test_stages_depend_on_the_modules_they_use_and_on_no_others():
    assert "effopd.losses.divergences" in fingerprints._closure("effopd.stages.segments")
    assert "effopd.data.prompts" in fingerprints._closure("effopd.stages.train_rl")
    assert "effopd.stages.plot_figure" not in fingerprints._closure("effopd.stages.segments")
    assert "effopd.training.trainer" not in fingerprints._closure("effopd.stages.plot_figure")
    assert not any(m.startswith("effopd.artifacts") for m in fingerprints._closure("effopd.stages.evaluate"))
    assert code_digest("effopd.stages.evaluate") != code_digest("effopd.stages.segments")


def test_a_results_folder_is_claimed_by_one_workflow(tmp_path):
    held = claim_results(tmp_path)
    with pytest.raises(UserError, match=r"another workflow \(process \d+, since .*\) is working on"):
        claim_results(tmp_path)
    held.close()
    claim_results(tmp_path).close()


def test_file_system_failures_become_one_line():
    assert "the disk is full (x.bin). Everything finished so far is kept" in describe_os_error(
        OSError(errno.ENOSPC, "No space", "x.bin")
    )
    assert "read-only" in describe_os_error(OSError(errno.EROFS, "ro", "r"))


@pytest.mark.parametrize(
    ("values", "fit"),
    [
        ([], True),
        ([0.5, None, 1], True),
        ([0.5, "x"], False),
        ([True], False),
        ([[1]], False),
        ({}, False),
        (None, False),
    ],
)
def test_values_per_item_are_numbers_or_nothing(tmp_path, values, fit):
    path, trial = tmp_path / "decision.json", {"coefficient": 0, "value": 0.5, "per_item": values}
    result = {"step": 1, "current": trial, "trials": [trial]}
    write_manifest(path, kind="decision", spec={}, parents={}, result=result, started=0.0)
    if fit:
        assert read_manifest(path, "decision").result == result
    else:
        with pytest.raises(ArtifactError, match=r"decision\.json is damaged \(its `result\.current\.per_item`: it is "):
            read_manifest(path)
