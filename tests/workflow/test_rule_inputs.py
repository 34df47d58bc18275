"""What jobs are made from and told, without Snakemake: for one plan that has a little of everything."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from effopd.common.errors import ConfigError, UserError
from effopd.workflow.job_specs import Plan
from effopd.workflow.rule_inputs import RuleInputs
from effopd.workflow.rule_params import RuleParams, folder_of_outputs, named_inputs, only_output, quoted

GATE = {"examples": 8}
CONFIG = {
    "task": {"name": "arithmetic"},
    "models": {
        "base": {"kind": "pretrain", "steps": 4},
        "teacher": {"kind": "grpo", "init": "base", "steps": 2, "num_processes": 2},
    },
    "training": {"steps": 4, "prompts_per_step": 8, "batch_size": 4},
    "runs": {
        "opd": {"extrapolation": {"triggers": "none"}},
        "effopd": {"training": {"teacher": "other", "num_processes": 2}, "extrapolation": {"gate": GATE}},
    },
    "seeds": [0, 1],
    "evaluation": {
        "baseline": "opd",
        "tasks": {"longer": {"task": {"name": "arithmetic", "min_terms": 5}, "samples": 2}},
    },
    "predictions": {
        "alpha": {"run": "opd", "method": "alpha", "gate": GATE},
        "expo": {"run": "effopd", "method": "expo", "gate": GATE},
    },
    "dynamics": {"runs": ["effopd"], "seeds": [1], "models": ["teacher"], "local_theory": {"enabled": True}},
    "runtime": {"device": "cpu"},
}
RUNS, MODELS = "results/runs", "results/models"
MODEL = {name: f"{MODELS}/{name}/manifest.json" for name in ("base", "teacher", "other")}
PROMPTS = "results/data/arithmetic/prompts-{}/manifest.json"


class Wildcards(SimpleNamespace):
    """A job's wildcards, as Snakemake gives them to functions."""

    def items(self):
        return vars(self).items()


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Makes the plan of `CONFIG` with other sections; `other` is a model in a local folder."""
    folder = tmp_path_factory.mktemp("local")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    models = {**CONFIG["models"], "other": {"kind": "pretrained", "path": str(folder)}}
    return lambda **changes: Plan({**CONFIG, "models": models, **changes})


@pytest.fixture(scope="module")
def inputs(plan):
    return RuleInputs(plan())


@pytest.fixture(scope="module")
def staged(plan):
    return RuleInputs(plan(execution={"mode": "staged"}))


def state(run, step, seed=1):
    return f"{RUNS}/{run}/seed{seed}/state/{step}/state.json"


def decision(run, step, seed=1):
    return f"{RUNS}/{run}/seed{seed}/extrapolation/{step}/decision.json"


def after(run, step):
    """The wildcards of a job at a step."""
    return Wildcards(run=run, seed="1", step=str(step))


@pytest.mark.parametrize(
    ("wildcards", "run"),
    [
        ({"run": "opd", "seed": "0"}, "opd"),
        ({"prediction": "expo", "step": "4"}, "effopd"),
        ({"subject": "effopd/seed1"}, "effopd"),
        ({"subject": "models/teacher"}, "opd"),
        ({"subject": "models/other"}, "effopd"),
    ],
)
def test_a_job_has_the_models_and_prompts_of_the_run_it_belongs_to(inputs, wildcards, run):
    job = Wildcards(**wildcards)
    assert inputs.run_of(job) == run
    assert inputs.student(job) == MODEL["base"]
    assert inputs.teacher(job) == MODEL["other" if run == "effopd" else "teacher"]
    assert inputs.prompts(job) == PROMPTS.format("base")


def test_checks_are_of_the_models_that_start_what_depends_on_them(inputs):
    for run in CONFIG["runs"]:
        (checks,) = inputs.permission(after(run, inputs.plan.boundaries(run)[0]))
        pair = checks.removeprefix("results/preflight/").removesuffix(".json")
        assert inputs.teacher(Wildcards(pair=pair)) == inputs.teacher(Wildcards(run=run))


START = {  # of a run's step, colocated: what it starts from
    ("opd", 1): {"state": MODEL["base"]},
    ("opd", 4): {"state": state("opd", 2)},
    ("effopd", 1): {"state": MODEL["base"]},
    ("effopd", 2): {"state": state("effopd", 1), "decision": decision("effopd", 1)},
}


@pytest.mark.parametrize(("run", "step"), START)
def test_a_segment_starts_where_the_one_before_ends_with_its_jump(inputs, run, step):
    assert inputs.start(after(run, step)) == START[run, step]
    assert bool(inputs.permission(after(run, step))) == (step == 1)


def test_every_state_is_followed_by_what_starts_from_it(inputs, staged):
    """From the last step back to the student: no checkpoint is left out or comes twice, and each has its jump."""
    for all_inputs, steps in ((inputs, [4, 2, 1]), (staged, [4, 3, 2, 1])):
        for run in CONFIG["runs"]:
            chain, step = [], 4
            while step:
                chain.append(step)
                files = all_inputs.start(after(run, step))
                step = all_inputs.plan.previous_state(run, step)
                assert files == all_inputs.checkpoint(run, "1", step)
                assert ("decision" in files) == (step in all_inputs.plan.triggers(run))
                assert bool(all_inputs.permission(after(run, chain[-1]))) == (step == 0)
            assert chain == steps


def test_an_update_is_measured_from_the_jump_before(inputs):
    assert inputs.anchor(after("effopd", 1)) == {"anchor": MODEL["base"]}
    assert inputs.anchor(after("effopd", 4)) == {"anchor": state("effopd", 2), "anchor_decision": decision("effopd", 2)}


def test_candidates_are_one_job_or_one_each(inputs, staged):
    folder = f"{RUNS}/effopd/seed1/extrapolation/2"
    assert inputs.candidates(after("effopd", 2)) == [f"{folder}/candidates.json"]
    coefficients = [0, *staged.plan.runs["effopd"]["extrapolation"]["coefficients"]]
    assert staged.candidates(after("effopd", 2)) == [f"{folder}/candidates/{c:g}.json" for c in coefficients]


def test_what_looks_back_sees_every_state_and_decision(inputs):
    history = {
        "states": [state("effopd", step) for step in (1, 2, 4)],
        "decisions": [decision("effopd", step) for step in (1, 2, 4)],
    }
    assert inputs.history(Wildcards(run="effopd", seed="1")) == history
    assert inputs.kept(Wildcards(subject="effopd/seed1")) == history
    assert inputs.kept(Wildcards(subject="models/teacher")) == {"states": [MODEL["teacher"]], "decisions": []}
    assert inputs.history(Wildcards(run="opd", seed="1"))["decisions"] == []
    expo = {key: paths[:2] for key, paths in history.items()}
    assert inputs.behind(Wildcards(prediction="expo", seed="1", step="2")) == {**expo, "validations": []}
    alpha = inputs.behind(Wildcards(prediction="alpha", seed="1", step="2"))
    assert alpha["validations"] == [f"results/validation/opd/seed1/{step}.json" for step in (0, 1, 2)]


def test_each_model_is_made_by_one_stage_from_its_parent(inputs):
    stages = {stage: inputs.made_by(stage) for stage in ("pretrain_model", "train_rl", "fetch_model")}
    assert stages == {"pretrain_model": ["base"], "train_rl": ["teacher"], "fetch_model": ["other"]}
    assert inputs.parent(Wildcards(model="teacher")) == {"init": MODEL["base"], "prompts": PROMPTS.format("base")}
    folder = Path(inputs.plan.config["models"]["other"]["path"])
    assert set(inputs.model_files(Wildcards(model="other"))) == set(map(str, folder.iterdir()))
    assert inputs.reference_teacher() == MODEL["teacher"]


def test_a_gguf_file_is_an_input_and_a_package_has_none(plan, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    package = {"name": "a", "version": "1", "sha256": "0" * 64, "file": "a.gguf"}
    models = {
        "file": {"kind": "pretrained", "path": str(tmp_path / "a.gguf")},
        "other": {"kind": "pretrained", "path": str(tmp_path)},
        "package": {"kind": "pretrained", "package": package},
    }
    inputs = RuleInputs(plan(models={**CONFIG["models"], **models}))
    files = {model: inputs.model_files(Wildcards(model=model)) for model in models}
    assert files == {"file": [str(tmp_path / "a.gguf")], "other": [str(tmp_path / "a.gguf")], "package": []}
    assert inputs.made_by("fetch_model") == list(models)


def test_what_fine_tuned_models_are_made_from(plan):
    sampling = {"from": "teacher"}
    tuned = {"kind": "sft", "init": "base"}
    learns = {**tuned, "data": "samples", "sampling": sampling}
    inputs = RuleInputs(
        plan(models={**plan().config["models"], "worked": tuned, "one": learns, "two": {**learns, "lr": 1e-3}})
    )
    (sample,) = inputs.plan.samples
    assert inputs.made_by("train_sft") == ["worked", "one", "two"]
    parent = {"init": MODEL["base"], "prompts": PROMPTS.format("base")}
    assert inputs.fine_tuned(Wildcards(model="worked")) == parent
    samples = {"samples": f"results/samples/{sample}/manifest.json"}
    assert (
        inputs.fine_tuned(Wildcards(model="one")) == inputs.fine_tuned(Wildcards(model="two")) == {**parent, **samples}
    )
    assert inputs.sampled(Wildcards(sample=sample)) == {"model": MODEL["teacher"], "prompts": PROMPTS.format("teacher")}


def test_another_tasks_data_knows_what_is_trained_on(inputs):
    assert inputs.tasks == ["arithmetic", "longer"]
    assert inputs.training_data(Wildcards(task="arithmetic")) == {}
    assert inputs.training_data(Wildcards(task="longer")) == {"training": "results/data/arithmetic/manifest.json"}
    assert inputs.task_prompts(Wildcards(task="longer", run="opd")) == "results/data/longer/prompts-base/manifest.json"


def test_the_workflow_makes_each_artifact_once(inputs):
    made = inputs.kept_artifacts()
    assert len(made) == len(set(made))
    states = [state(run, step, seed) for run in ("opd", "effopd") for seed in (0, 1) for step in (1, 2, 4)]
    decisions = [decision("effopd", step, seed) for seed in (0, 1) for step in (1, 2, 4)]
    assert {*states, *decisions, *MODEL.values()} <= set(made)
    counts = {"evaluation/tasks/": 7, "evaluation/models/": 3, "evaluation/alpha/": 4, "evaluation/expo/": 6}
    assert {part: sum(part in path for path in made) for part in counts} == counts
    assert {path for path in made if "dynamics" in path and "weight_analysis" in path} == set(inputs.weight_analyses())
    assert inputs.weight_analyses() == [
        f"results/dynamics/{subject}/weight_analysis.json" for subject in ("effopd/seed1", "models/teacher")
    ]
    assert inputs.local_theories() == ["results/dynamics/effopd/seed1/local_theory.json"]
    assert inputs.linearizations() == ["results/dynamics/models/base/linearized-other/manifest.json"]


def test_what_is_switched_off_is_neither_made_nor_shown(plan):
    off = {"evaluation": {"baseline": "opd"}, "predictions": {}, "dynamics": {"enabled": False}}
    inputs = RuleInputs(plan(**off))
    assert inputs.source_table() == inputs.task_table() == inputs.dynamics_tables() == inputs.dynamics_pages() == []
    assert inputs.dynamics() == inputs.local_theories() == inputs.local_theory_tables() == inputs.predictions() == []
    assert not any("dynamics" in path for path in inputs.kept_artifacts())


def test_data_that_is_not_there_is_named_before_anything_runs(plan, tmp_path):
    train = {"sources": [{"files": [str(tmp_path / "none.jsonl")]}]}
    task = {"name": "math", "splits": {"train": train, "validation": {"share": 0.1}, "test": {"share": 0.1}}}
    models = {"base": plan().config["models"]["other"], "teacher": {"kind": "grpo", "init": "base"}}
    with pytest.raises(ConfigError, match=r"none\.jsonl"):
        RuleInputs(Plan({"task": task, "models": models, "runs": {"opd": {}}}))


def test_a_command_gets_its_named_inputs_as_options():
    files = {"state": "a", "anchor_decision": "b", "states": ["c", "d"], "decisions": []}
    assert named_inputs(None, files) == "--state a --anchor-decision b --states c --states d"
    assert only_output(None, ["x/metrics", "x/cost"]) == "x/metrics"
    assert folder_of_outputs(None, ["x/y/metrics"]) == "x/y"
    assert quoted(lambda wildcards: ["a b", "c"])(None, None) == "'a b' c"


def test_an_evaluation_is_specified_by_what_it_is_of(inputs):
    params, plan = RuleParams(inputs), inputs.plan
    spec = params.evaluation_spec()
    assert spec(after("opd", 2)) == plan.evaluate_run_spec("opd")
    assert spec(Wildcards(prediction="expo", seed="1", step="2")) == plan.evaluate_run_spec("effopd")
    assert spec(Wildcards(model="base")) == plan.evaluate_model_spec()
    assert spec(Wildcards(model="base", task="longer")) == plan.evaluate_model_spec(task="longer")
    assert spec(Wildcards(run="opd", task="longer")) == plan.evaluate_run_spec("opd", task="longer")
    validation = params.evaluation_spec("validation")
    assert validation(after("opd", 2)) == plan.evaluate_run_spec("opd", split="validation") != spec(after("opd", 2))
    assert params.spec("train_segment")(after("opd", 2)) == plan.spec("train_segment", run="opd", seed="1", step="2")


def test_a_job_starts_with_its_ranks_and_resources(plan, inputs):
    params, on_gpu = RuleParams(inputs), RuleParams(RuleInputs(plan(runtime={"device": "cuda"})))
    assert params.launch()(after("effopd", 2), 1, {"gpu": 1}) == "effopd"
    assert "--ranks 2" in params.launch(params.ranks_of_run)(after("effopd", 2), 2, {})
    assert params.launch(params.ranks_of_model)(Wildcards(model="base"), 1, {}) == "effopd"
    assert on_gpu.launch()(after("opd", 2), 1, {"gpu": 1}).endswith("--ranks 1 --gpus 1")
    with pytest.raises(UserError, match="several nodes need `mpi: srun`"):
        params.launch(params.ranks_of_run)(after("effopd", 2), 2, {"nodes": 2})
