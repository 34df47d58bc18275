"""Estimates of time and disk, and the paper's configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import FAMILIES, make_family

from effopd.architecture import Architecture, of_config
from effopd.config import complete
from effopd.estimates import Hardware, dry_run_estimate, estimate, estimate_run
from effopd.plan import Plan
from effopd.runtime.errors import ConfigError

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config/paper"
TRAINED = ("teacher_grpo", "teacher_dapo", "teacher_ppo")
ROWS = sorted(path.stem for path in PAPER.glob("*.yaml") if path.stem not in ("math", "code", *TRAINED))
TO_SUPPLY = {
    "qwen3_8b_base_ppo", "qwen3_8b_base_dapo", "qwen3_14b_base_dapo", "qwen3_14b_grpo",
}  # fmt: skip
TO_PIN = {"qwen2.5_7b_orz"}
# Parameters as published, or counted in the checkpoint.
PUBLISHED = {
    "justrl_1.5b": 1.777e9, "brorl_1.5b": 1.777e9, "prorl_1.5b": 1.777e9, "qwen3_4b_grpo": 4.022e9,
    "qwen3_8b_base_ppo": 8.191e9, "qwen3_8b_base_dapo": 8.191e9, "qwen3_14b_base_dapo": 14.768e9, "qwen3_14b_grpo": 14.768e9,
    "qwen2.5_7b_orz": 7.6156e9, "qwen2.5_32b_dapo": 32.7639e9,
}  # fmt: skip


def plan_of(row, domain="math", *more):
    return Plan.of_files([ROOT / "config/config.yaml", PAPER / f"{domain}.yaml", PAPER / f"{row}.yaml", *more])


@pytest.fixture
def pinned(tmp_path):
    """An overlay that adds what a row leaves to be added."""
    path = tmp_path / "pin.yaml"
    path.write_text(f"models: {{teacher: {{revision: {'a' * 40}}}}}")
    return path


def test_every_row_of_the_papers_table_is_there():
    assert set(ROWS) == set(PUBLISHED)


@pytest.mark.parametrize("domain", ["math", "code"])
@pytest.mark.parametrize("row", ROWS)
def test_the_papers_configurations_are_complete(row, domain, pinned):
    plan = plan_of(row, domain, *([pinned] if row in TO_PIN else []))
    assert list(plan.runs) == ["opd", "effopd"]
    assert set(plan.config["models"]) == {"base", "teacher"}
    assert plan.boundaries("opd") == plan.boundaries("effopd") == (1, 2, 4, 8, 16, 32, 40)
    training = plan.runs["effopd"]["training"]
    assert (training["lr"], training["prompts_per_step"], training["max_new_tokens"]) == (1e-6, 1024, 16384)
    assert plan.runs["effopd"]["extrapolation"]["gate"]["examples"] == 50
    found = estimate(plan)
    assert found.timed
    assert not found.notes
    assert 10 < found.gpu_hours < 10_000
    assert all(run.memory < 60e9 for run in found.runs)
    shape = Architecture(**plan.config["estimate"]["architectures"]["base"])
    assert shape.parameters == pytest.approx(PUBLISHED[row], rel=2e-3)


@pytest.mark.parametrize("row", sorted(TO_SUPPLY))
def test_a_teacher_that_is_to_be_supplied_is_asked_for(row, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"the model folder teachers/{row} does not exist"):
        plan_of(row).model_files("teacher")


@pytest.mark.parametrize("overlay", TRAINED)
@pytest.mark.parametrize("row", ROWS)
def test_a_teacher_can_be_trained_with_the_settings_of_the_papers_rl_baselines(row, overlay):
    """Whichever row: also where its own teacher is to be supplied, or pinned."""
    plan = plan_of(row, "math", PAPER / f"{overlay}.yaml")
    teacher = plan.config["models"]["teacher"]
    assert (plan.model_stage("teacher"), plan.model_files("teacher")) == ("train_rl", [])
    assert (teacher["init"], teacher["prompts_per_step"], teacher["samples_per_prompt"]) == ("base", 512, 16)
    clips = (teacher["clip_low"], teacher["clip_high"], teacher.get("kl_coefficient", 0))
    assert clips == {"grpo": (0.2, 0.2, 0.001), "dapo": (0.2, 0.28, 0), "ppo": (0.2, 0.2, 0)}[teacher["kind"]]
    assert plan.roles("effopd") == ("base", "teacher")


def test_a_commit_that_is_to_be_added_is_asked_for():
    for row in TO_PIN:
        with pytest.raises(ConfigError, match=r"`models.teacher.revision` is missing"):
            plan_of(row)


def test_null_takes_a_key_out():
    config = {
        "models": {"base": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "base"}},
        "runs": {"opd": {}},
    }
    assert list(complete({**config, "runs": {"opd": {}, "other": None}})["runs"]) == ["opd"]
    with pytest.raises(ConfigError, match="`runs` is {}; it must not be empty"):
        complete({**config, "runs": {"opd": None}})


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mixtral"])
def test_parameters_are_counted_from_the_configuration(family):
    model = make_family(family, 0)
    shape = of_config(model.config.to_dict())
    weights = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    assert shape.parameters == sum(p.numel() for p in weights.values())


def test_arithmetic_is_that_of_the_model():
    """2 a parameter and token forward, and attention over half the sequence: counted by hand for a tiny shape."""
    shape = Architecture(
        hidden_size=4, intermediate_size=8, layers=2, heads=2, kv_heads=1, head_dim=2, vocabulary=10, tied=True
    )
    # a layer: q 4x4, k 4x2, v 4x2, o 4x4; gate, up, down 4x8; then the output matrix 4x10
    matrices = 2 * (16 + 8 + 8 + 16 + 3 * 32) + 40
    assert shape.matrices == shape.parameters == matrices
    # scores and values: 2 layers x 2 heads x 2 wide x 2 operations x 2 (scores, values) x 6/2 positions
    assert shape.forward_flops(6) == 2 * matrices + 2 * 2 * 2 * 2 * 2 * 3
    assert shape.cache_bytes == 2 * 2 * 1 * 2 * 2  # keys and values, 2 layers, 1 head, 2 wide, 2 bytes


def test_decoding_reads_weights_and_cache():
    shape = Architecture(
        hidden_size=2048,
        intermediate_size=8192,
        layers=16,
        heads=16,
        kv_heads=8,
        head_dim=128,
        vocabulary=32000,
        tied=True,
    )
    one = Hardware(1, tflops=1000, bandwidth_gb=1000, memory_gb=80, utilisation=1, bandwidth_share=1)
    alone = one.decode(shape, 1, 0, 100, 100)
    assert alone == pytest.approx(100 * (2 * shape.parameters + 50 * shape.cache_bytes) / 1e12)
    assert one.decode(shape, 64, 0, 100, 100) < 2 * alone  # a batch shares the weights
    assert one.decode(shape, 64, 0, 100, 1000) == pytest.approx(10 * one.decode(shape, 64, 0, 100, 100))  # stragglers
    many = 10**6  # beyond the memory: in turn
    assert one.decode(shape, 2 * many, 0, 100, 100) == pytest.approx(2 * one.decode(shape, many, 0, 100, 100), rel=0.01)
    eight = Hardware(8, tflops=1000, bandwidth_gb=1000, memory_gb=80, utilisation=1, bandwidth_share=1)
    assert eight.decode(shape, 8 * many, 0, 100, 100) == pytest.approx(one.decode(shape, many, 0, 100, 100))
    assert eight.compute(1e15) == pytest.approx(1e15 / 8e15)


def test_the_embedded_experiment_takes_disk_and_no_gpu_hours():
    """As counted from its states: the README has what a run of it left."""
    found = estimate(Plan.of_files([ROOT / "config/config.yaml"]))
    assert found.disk == pytest.approx(442e6, rel=0.1)
    assert found.line() == f"{found.disk / 1e6:.0f} MB of disk"


def test_gates_on_own_rollouts_generate_nothing_and_every_step_holds_a_second_student():
    own = {"metric": "reverse_kl", "source": "rollouts"}
    runs = {
        "opd": {"extrapolation": {"triggers": "none"}},
        "fresh": {"extrapolation": {"gate": {"metric": "reverse_kl"}}},
        "own": {"extrapolation": {"gate": own}},
        "every": {"extrapolation": {"triggers": "every_step", "gate": own}},
    }
    models = {"base": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "base"}}
    plan = Plan({"models": models, "runs": runs})
    shape = Architecture(64, 192, 4, 4, 2, 16, 100, True)
    found = {run: estimate_run(plan, run, shape, shape) for run in runs}
    assert 0 == found["opd"].seconds["gates"] < found["own"].seconds["gates"] < found["fresh"].seconds["gates"]
    assert found["every"].seconds["gates"] == pytest.approx(found["own"].seconds["gates"] * 64 / 7)
    assert found["every"].memory > found["own"].memory == found["opd"].memory


def test_more_of_everything_takes_more(tmp_path):
    base = estimate(plan_of("justrl_1.5b"))

    def with_overlay(text):
        path = tmp_path / "overlay.yaml"
        path.write_text(text)
        return estimate(plan_of("justrl_1.5b", "math", path))

    by_run = {run.run: run for run in base.runs}
    assert by_run["opd"].seconds["gates"] == 0 < by_run["effopd"].seconds["gates"]
    assert by_run["opd"].disk < by_run["effopd"].disk
    twice = with_overlay("seeds: [42, 43]")
    assert (twice.gpu_hours, twice.disk) == (2 * base.gpu_hours, 2 * base.disk)
    assert with_overlay("training: {max_new_tokens: 32768}").gpu_hours > 2 * base.gpu_hours
    assert with_overlay("training: {horizon: {tokens: 4096}}").gpu_hours < base.gpu_hours
    beside = with_overlay("training: {zero_stage: 0, precision: float32, gradient_checkpointing: false}")
    assert beside.notes[0].startswith("opd: an update takes ")
    assert "of each GPU, which has 80.0 GB" in beside.notes[0]
    assert with_overlay("extrapolation: {gate: {metric: reverse_kl}}").gpu_hours > base.gpu_hours


def test_a_size_that_is_not_known_is_asked_for(tmp_path):
    path = tmp_path / "overlay.yaml"
    path.write_text("estimate: {architectures: {teacher: null}}")
    plan = plan_of("justrl_1.5b", "math", path)
    assert estimate(plan).runs == []
    lines = dry_run_estimate(plan)
    assert lines[0].startswith("nothing can be said before the models are there")
    assert lines[1] == "opd: the size of teacher is not known yet. Add it to `estimate.architectures`."
