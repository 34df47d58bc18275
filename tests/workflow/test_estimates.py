"""Estimates of time and disk, and the paper's configurations."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from effopd.common.errors import ConfigError, UserError
from effopd.config.load import complete
from effopd.workflow.estimates.architecture import Architecture, architecture_of, of_config
from effopd.workflow.estimates.experiment import dry_run_estimate, estimate, too_large
from effopd.workflow.estimates.hardware import Hardware
from effopd.workflow.estimates.parts import Part, of_interventions, of_model, of_prediction, of_run, of_validations
from effopd.workflow.job_specs import Plan
from estimate_tables import DOCS
from tiny_models import FAMILIES, make_family, make_model

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "config/paper"
TRAINED = ("teacher_grpo", "teacher_dapo", "teacher_ppo")
DOMAINS = ("math", "code", "gpqa", "every_step")
ROWS = sorted(path.stem for path in PAPER.glob("*.yaml") if path.stem not in (*DOMAINS, *TRAINED))
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


MODELS = {"base": {"kind": "pretrain"}, "teacher": {"kind": "grpo", "init": "base"}}
SHAPE = Architecture(64, 192, 4, 4, 2, 16, 100, True)
MEASURED = 501e6  # bytes that the embedded experiment left


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


def test_another_task_to_evaluate_on_counts_once_a_run_and_nowhere_else():
    plain, plan = plan_of("justrl_1.5b"), plan_of("justrl_1.5b", "math", PAPER / "gpqa.yaml")
    assert plan.other_tasks == ["gpqa"]
    for before, after in zip(estimate(plain).parts, estimate(plan).parts, strict=True):
        changed = {stage for stage, seconds in before.gpu_seconds.items() if after.gpu_seconds[stage] != seconds}
        assert changed == {"evaluation"}
        states = len(plan.boundaries(before.name)) if before.name in plan.runs else 1
        share = 198 / (362 * states)  # of the completions, and none of them is scored
        assert 1 < after.gpu_seconds["evaluation"] / before.gpu_seconds["evaluation"] < 1 + share
        assert after.disk == before.disk


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
    # two models of 32 billion parameters on one GPU need more than 80 GB
    assert [note.partition(":")[0] for note in found.notes] == (
        ["opd", "effopd", "model base", "model teacher"] if "32b" in row else []
    )
    assert 10 < found.gpu_hours < 10_000
    assert [part.name for part in found.parts] == ["opd", "effopd", "model base", "model teacher"]
    assert all(part.memory < 80e9 for part in found.parts if part.memory is not None)
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
    """Whichever row: also if its own teacher is to be supplied, or pinned."""
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


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_the_docs_say_what_the_command_prints(path):
    text = path.read_text()
    assert DOCS[path](text) == text, f"{path.name} is stale: run `python tests/helpers/estimate_tables.py`"


def test_estimates_are_light_to_import():
    """Snakemake reads them before every run."""
    code = "import sys, effopd.workflow.estimates.experiment; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
    one = Hardware(1, tflops=1000, bandwidth_gb=1000, memory_gb=80, utilization=1, bandwidth_share=1)
    alone = one.decode(shape, 1, 0, 100, 100)
    assert alone == pytest.approx(100 * (2 * shape.parameters + 50 * shape.cache_bytes) / 1e12)
    assert one.decode(shape, 64, 0, 100, 100) < 2 * alone  # a batch shares the weights
    assert one.decode(shape, 64, 0, 100, 1000) == pytest.approx(10 * one.decode(shape, 64, 0, 100, 100))  # stragglers
    many = 10**6  # beyond the memory: in turn
    assert one.decode(shape, 2 * many, 0, 100, 100) == pytest.approx(2 * one.decode(shape, many, 0, 100, 100), rel=0.01)
    eight = Hardware(8, tflops=1000, bandwidth_gb=1000, memory_gb=80, utilization=1, bandwidth_share=1)
    assert eight.decode(shape, 8 * many, 0, 100, 100) == pytest.approx(one.decode(shape, many, 0, 100, 100))
    assert eight.compute(1e15) == pytest.approx(1e15 / 8e15)


def test_the_embedded_experiment_takes_disk_and_no_gpu_hours():
    """As its folder had it (docs/preflight.md)."""
    found = estimate(Plan.of_files([ROOT / "config/config.yaml"]))
    assert found.disk == pytest.approx(MEASURED, rel=0.1)
    assert found.line() == f"{found.disk / 1e6:.0f} MB of disk"


def test_gates_on_own_rollouts_generate_nothing_and_every_step_holds_a_second_student():
    own = {"metric": "reverse_kl", "source": "rollouts"}
    runs = {
        "opd": {"extrapolation": {"triggers": "none"}},
        "fresh": {"extrapolation": {"gate": {"metric": "reverse_kl"}}},
        "own": {"extrapolation": {"gate": own}},
        "every": {"extrapolation": {"triggers": "every_step", "gate": own}},
    }
    plan = Plan({"models": MODELS, "runs": runs})
    found = {run: of_run(plan, run, SHAPE, SHAPE) for run in runs}
    gates = {run: part.gpu_seconds["gates"] for run, part in found.items()}
    assert 0 == gates["opd"] < gates["own"] < gates["fresh"]
    assert gates["every"] == pytest.approx(gates["own"] * 64 / 7)
    second = 4 * SHAPE.parameters
    assert found["every"].memory - second == found["own"].memory == found["opd"].memory


def of_kind(kind, **settings):
    """The estimate of a model of that kind, of a configuration that says no more than `settings`."""
    plan = Plan({"models": {**MODELS, "other": {"kind": kind, "init": "base", **settings}}, "runs": {"opd": {}}})
    return of_model(plan, "other", SHAPE, SHAPE)


def test_what_reinforcement_learning_takes():
    once = of_kind("grpo", steps=8, measure_kl=False)
    assert once.gpu_seconds["scores"] == 0  # one update a step: the engine's log-probs are those of the policy
    assert once.disk == 4 * SHAPE.parameters * 5  # after 1, 2, 4 and 8 steps, and the model
    with_kl = of_kind("grpo", steps=8)
    forward = with_kl.gpu_seconds["scores"]  # by the model that training started from
    assert with_kl.gpu_seconds["updates"] == once.gpu_seconds["updates"] == pytest.approx(3 * forward)
    assert with_kl.memory == once.memory + 4 * SHAPE.parameters
    several = of_kind("grpo", steps=8, minibatches=4, epochs=2)
    assert several.gpu_seconds["scores"] == pytest.approx(2 * forward)  # of the policy before the first update, too
    assert several.gpu_seconds["updates"] == pytest.approx(6 * forward)
    assert several.memory < with_kl.memory  # a quarter of the rollouts at a time
    stopped = of_kind("grpo", steps=8, early_stopping={"every": 4, "problems": 64})
    assert stopped.gpu_seconds["evaluation"] > with_kl.gpu_seconds["evaluation"]
    critic = of_kind("ppo", steps=8, minibatches=1, epochs=1, measure_kl=False)
    assert critic.gpu_seconds["scores"] == pytest.approx(forward)  # its values before the update


def test_what_fine_tuning_takes():
    """Updates alone; samples are a part of their own, which models that learn from the same ones share."""
    sampling = {"from": "base", "problems": 100, "samples": 4, "max_new_tokens": 48}
    learnt = {"kind": "sft", "init": "base", "steps": 8, "data": "samples", "sampling": sampling}
    plain, sampled = of_kind("sft", steps=8), of_kind("sft", steps=8, data="samples", sampling=sampling)
    assert plain.gpu_seconds.keys() == {"updates", "evaluation"}
    assert plain.disk == 4 * SHAPE.parameters * 5
    assert sampled.gpu_seconds["updates"] > plain.gpu_seconds["updates"]  # of twice as long completions
    assert of_kind("sft", steps=8, batch_size=64).gpu_seconds["updates"] == pytest.approx(
        2 * plain.gpu_seconds["updates"]
    )
    assert of_kind("sft", max_tokens=32).memory < plain.memory
    assert of_kind("sft", lora={"rank": 1}).memory < plain.memory
    models = {
        **MODELS,
        "one": learnt,
        "two": {**learnt, "lr": 1e-3},
        "three": {**learnt, "sampling": {**sampling, "samples": 8}},
    }
    shared = [part for part in estimate(Plan({"models": models, "runs": {"opd": {}}})).parts if "samples" in part.name]
    assert len(shared) == 2
    assert shared[1].gpu_seconds["rollouts"] > 1.9 * shared[0].gpu_seconds["rollouts"] > 0
    assert shared[1].disk == 2 * shared[0].disk


def test_dapo_draws_more_than_it_trains_on():
    """As often as `estimate.draws` says, and at most `max_draws` times."""
    fixed = of_kind("grpo", steps=8, minibatches=2, measure_kl=False)
    twice, once = of_kind("dapo", steps=8, measure_kl=False), of_kind("dapo", steps=8, max_draws=1, measure_kl=False)
    assert twice.gpu_seconds["rollouts"] == pytest.approx(2 * fixed.gpu_seconds["rollouts"], rel=0.5)
    assert twice.gpu_seconds["rollouts"] > once.gpu_seconds["rollouts"] == pytest.approx(fixed.gpu_seconds["rollouts"])
    assert twice.gpu_seconds["updates"] == pytest.approx(fixed.gpu_seconds["updates"])


def test_a_base_that_is_trained_here_takes_its_updates():
    plan = Plan({"models": MODELS, "runs": {"opd": {}}})
    part = of_model(plan, "base", SHAPE, SHAPE)
    assert set(part.gpu_seconds) == {"updates", "evaluation"}
    assert part.disk == 4 * SHAPE.parameters


def test_a_model_is_linked_or_made_of_a_gguf_file(tmp_path):
    for name in ("folder/model.safetensors", "folder/beside.gguf", "alone/a.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    package = {"name": "a", "version": "1", "sha256": "0" * 64, "file": "a.gguf"}
    sources = {
        "hub": {"path": "a/b", "revision": "0" * 40},
        "folder": {"path": str(tmp_path / "folder")},
        "alone": {"path": str(tmp_path / "alone")},
        "file": {"path": str(tmp_path / "to_come.gguf")},
        "package": {"package": package},
    }
    models = {name: {"kind": "pretrained", **source} for name, source in sources.items()}
    plan = Plan({"models": {**MODELS, **models}, "runs": {"opd": {}}})
    disk = {name: of_model(plan, name, SHAPE, SHAPE).disk for name in models}
    copy = 4 * SHAPE.parameters
    assert disk == {"hub": 0, "folder": 0, "alone": copy, "file": copy, "package": copy}
    assert architecture_of(models, "file", 16, {}) is architecture_of(models, "package", 16, {}) is None


def test_predictions_are_gated_and_evaluated():
    """And states are validated once, however many predictions ask for their accuracy."""
    predictions = {
        "expo": {"run": "opd", "method": "expo"},
        "alpha": {"run": "opd", "method": "alpha"},
        "again": {"run": "opd", "method": "alpha", "coefficients": [1]},
    }
    config = {"models": MODELS, "runs": {"opd": {}}, "predictions": predictions}
    plan, fewer = Plan(config), Plan({**config, "predictions": {"alpha": predictions["alpha"]}})
    run, expo = of_run(plan, "opd", SHAPE, SHAPE), of_prediction(plan, "expo", SHAPE, SHAPE)
    share = len(plan.prediction_steps("expo")) / len(plan.boundaries("opd"))
    assert expo.gpu_seconds["evaluation"] == pytest.approx(share * run.gpu_seconds["evaluation"])
    assert expo.disk == 4 * SHAPE.parameters * 3 * len(plan.prediction_steps("expo"))  # with three seeds
    alpha, again = (of_prediction(plan, name, SHAPE, SHAPE) for name in ("alpha", "again"))
    assert again.gpu_seconds["gates"] == pytest.approx(alpha.gpu_seconds["gates"] * 2 / 6)  # candidates and none
    validated = of_validations(plan, "opd", SHAPE)
    assert validated.gpu_seconds["gates"] == of_validations(fewer, "opd", SHAPE).gpu_seconds["gates"] > 0
    assert of_validations(Plan({**config, "predictions": {}}), "opd", SHAPE).gpu_seconds == {}


def test_interventions_are_as_many_as_the_stage_plans():
    """Base, final, 4 on the path; a window around each of 4 layers, of attention and of MLPs: of an evaluation each."""
    runs = {"opd": {"training": {"steps": 16}}}
    plan = Plan({"models": MODELS, "runs": runs, "dynamics": {"problems": 1024, "interventions": ["path", "window"]}})
    a_state = of_run(plan, "opd", SHAPE, SHAPE).gpu_seconds["evaluation"] / len(plan.points())
    part = of_interventions(plan, "opd/seed0", SHAPE, SHAPE)
    assert part.gpu_seconds["evaluation"] == pytest.approx(14 * a_state)
    of_teacher = of_interventions(plan, "models/teacher", SHAPE, SHAPE)  # kept after 1, 2, 4, ..., 128 and 220 steps
    assert of_teacher.gpu_seconds["evaluation"] == pytest.approx((2 + 8 + 8) * a_state)


def test_more_of_everything_takes_more(tmp_path):
    base = estimate(plan_of("justrl_1.5b"))

    def with_overlay(text):
        path = tmp_path / "overlay.yaml"
        path.write_text(text)
        return estimate(plan_of("justrl_1.5b", "math", path))

    parts = {part.name: part for part in base.parts}
    assert parts["opd"].gpu_seconds["gates"] == 0 < parts["effopd"].gpu_seconds["gates"]
    assert parts["opd"].disk < parts["effopd"].disk
    twice = {part.name: part for part in with_overlay("seeds: [42, 43]").parts}
    for name in ("opd", "effopd"):
        assert (twice[name].gpu_hours, twice[name].disk) == (2 * parts[name].gpu_hours, 2 * parts[name].disk)
    assert twice["model base"] == parts["model base"]  # whatever the seeds
    assert with_overlay("training: {max_new_tokens: 32768}").gpu_hours > 2 * base.gpu_hours
    assert with_overlay("training: {horizon: {tokens: 4096}}").gpu_hours < base.gpu_hours
    beside = with_overlay("training: {zero_stage: 0, precision: float32, gradient_checkpointing: false}")
    assert beside.notes[0].startswith("opd: an update takes ")
    assert "of each GPU, which has 80.0 GB" in beside.notes[0]
    assert with_overlay("extrapolation: {gate: {metric: reverse_kl}}").gpu_hours > base.gpu_hours


def test_remedies_are_those_of_the_part(tmp_path):
    """Stages are of runs; `dtype` is a pretrained model's, `precision` one's trained here; not what is bfloat16."""
    tight = tmp_path / "tight.yaml"
    tight.write_text("estimate: {gpu: {memory_gb: 4}}\nmodels: {teacher: {precision: float32, zero_stage: 0}}")
    found = estimate(plan_of("justrl_1.5b", "math", PAPER / "teacher_grpo.yaml", tight))
    update = "Use `gradient_checkpointing`, a smaller `micro_batch`, a higher `zero_stage`"
    assert [(note.partition(":")[0], note.rpartition(". ")[2]) for note in found.notes] == [
        ("opd", f"{update}, more `num_processes` or `execution.mode: staged`."),
        ("opd", "Use a larger one or `models.teacher.precision: bfloat16`."),
        ("effopd", f"{update}, more `num_processes` or `execution.mode: staged`."),
        ("effopd", "Use a larger one or `models.teacher.precision: bfloat16`."),
        ("model base", "Use a larger one or `models.teacher.precision: bfloat16`."),
        (
            "model teacher",
            "Use `gradient_checkpointing`, a smaller `micro_batch`, a higher `zero_stage` or more `num_processes`.",
        ),
        ("model teacher", "Use a larger one or `models.teacher.precision: bfloat16`."),
    ]
    plain = {"models": {"base": {"kind": "pretrained", "path": "./base"}, "teacher": MODELS["teacher"]}}
    base = Part("model base", {}, judging=2.0)
    plan = Plan({**plain, "runs": {"opd": {}}})
    (note,) = too_large(plan, base, 1.0)
    assert note.endswith("Use a larger one, `models.base.dtype: bfloat16` or `models.teacher.precision: bfloat16`.")
    (note,) = too_large(plan, replace(base, name="opd"), 1.0)
    assert note.endswith("Use a larger one, `training.precision: bfloat16` or `models.teacher.precision: bfloat16`.")


def test_a_size_that_is_not_known_is_asked_for(tmp_path):
    path = tmp_path / "overlay.yaml"
    path.write_text("estimate: {architectures: {teacher: null}}")
    plan = plan_of("justrl_1.5b", "math", path)
    assert estimate(plan).parts == []
    lines = dry_run_estimate(plan)
    assert lines[0].startswith("nothing can be said before the models are there")
    assert lines[1] == "opd: the size of teacher is not known yet. Add it to `estimate.architectures`."


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", [8], True])
def test_impossible_shapes_are_named(key, value, tmp_path):
    config = make_model(0).config.to_dict() | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    models = {"m": {"kind": "pretrained", "path": str(tmp_path)}}
    with pytest.raises(UserError, match=rf"config.json: `{key}` is "):
        architecture_of(models, "m", 16, {})


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{'a': 1}", b'{"a":' * 100_000, b'{"vocab_size": NaN}'])
def test_damaged_configurations_are_named(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json is damaged"):
        architecture_of({"m": {"kind": "pretrained", "path": str(tmp_path)}}, "m", 16, {})


def test_families_with_other_keys_are_not_known_before_they_are_fetched(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8}))
    assert architecture_of({"m": {"kind": "pretrained", "path": str(tmp_path)}}, "m", 16, {}) is None
