"""What reruns when: each change, and exactly the jobs that a dry run then asks for."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from effopd.workflow.job_specs import Plan
from workflow_runs import ROOT, Workflow

pytestmark = pytest.mark.slow

# The tiny experiment: 3 runs (two of them extrapolate) x 2 seeds x 3 kept states; 2 models.
REPORT = {"write_report": 1}
CONFIG = {**REPORT, "write_config": 1}
FIGURES = {"plot_figure": 5, **CONFIG}
WEIGHT_FIGURES = {"plot_weight_figure": 10}
LOOKS = {"write_explorer": 1, **WEIGHT_FIGURES}  # what shows runs by name and color, besides the figures above
TABLES = {"make_tables": 1, **FIGURES}


def dynamics(analyses: int, interventions: int) -> dict[str, int]:
    """The jobs on weights, of the tiny experiment's 4 subjects: 3 runs with one of their seeds, and the teacher."""
    jobs = {
        "analyze_weights": analyses, "evaluate_interventions": interventions, "make_dynamics_tables": 1,
        "compare_with_paper": 1, "write_explorer": min(analyses, 1), **WEIGHT_FIGURES,
    }  # fmt: skip
    return {rule: count for rule, count in jobs.items() if count}


EVERY_STATE = {"evaluate": 18, **TABLES}
EVERY_RUN = {
    "train_segment": 18, "evaluate_candidates": 12, "select_candidate": 12, "collect_run": 6, **dynamics(3, 3), **EVERY_STATE,
}  # fmt: skip
EVERY_PAIR = {"preflight": 1, **EVERY_RUN}
EVERY_TEACHER = {"train_rl": 1, "tokenize_prompts": 1, "evaluate_model": 2, **EVERY_PAIR, **dynamics(4, 4)}
EVERY_PROMPT = {**EVERY_TEACHER, "tokenize_prompts": 2}
EVERY_MODEL = {"pretrain_model": 1, **EVERY_PROMPT}
EVERYTHING = {"make_data": 1, **EVERY_MODEL}
# A run that extrapolates, from its first gate on: the segment before it stays.
AFTER_A_GATE = {
    "evaluate_candidates": 6, "select_candidate": 6, "train_segment": 4, "evaluate": 6, "collect_run": 2,
    **dynamics(1, 1), **TABLES,
}  # fmt: skip
AFTER_A_JUMP = {
    **AFTER_A_GATE,
    "evaluate_candidates": 4,
    "select_candidate": 4,
    "evaluate": 4,
}  # its first gate stays, too
BOTH_RUNS_AFTER_A_GATE = {
    "evaluate_candidates": 12, "select_candidate": 12, "train_segment": 8, "evaluate": 12, "collect_run": 4,
    **dynamics(2, 2), **TABLES,
}  # fmt: skip
NEW_RUN = {"train_segment": 6, "evaluate": 6, "collect_run": 2, **dynamics(1, 1), **TABLES}
STAGED = {
    "generate_rollouts": 18, "score_rollouts": 18, "update_policy": 24, "evaluate_candidate": 36, "evaluate_candidates": 6,
    "select_candidate": 12, "collect_run": 6, **dynamics(3, 3), **EVERY_STATE,
}  # the rollouts and scores of the untrained student are there already  # fmt: skip


def without_config(rules: dict[str, int]) -> dict[str, int]:
    """The same if no key has changed."""
    return {rule: count for rule, count in rules.items() if rule != "write_config"}


CHANGES = {
    # how things run, and where: nothing
    "runtime": ("runtime: {device: auto, threads: 2, warm: 'off'}", {}),
    "a default written out": ("models: {base: {betas: [0.9, 0.98]}}", {}),
    "the order of keys": ("task: {splits: {test: 24, validation: 16, train: 64}}", {}),
    # data and models
    "task.seed": ("task: {seed: 1}", EVERYTHING),
    "task.largest_term": ("task: {largest_term: 12}", EVERYTHING),
    "task.splits.test": ("task: {splits: {test: 25}}", EVERYTHING),
    "task.corpus.slips": ("task: {corpus: {slips: 0.2}}", EVERYTHING),
    "models.base.lr": ("models: {base: {lr: 0.002}}", EVERY_MODEL),
    "models.base.layers": ("models: {base: {layers: 3}}", EVERY_MODEL),
    "models.base.betas swapped": ("models: {base: {betas: [0.98, 0.9]}}", EVERY_MODEL),
    "models.base.precision": ("models: {base: {precision: bfloat16, zero_stage: 1}}", EVERY_MODEL),
    "models.teacher.micro_batch": ("models: {teacher: {micro_batch: 4}}", EVERY_TEACHER),
    "models.teacher.lr": ("models: {teacher: {lr: 0.001}}", EVERY_TEACHER),
    "models.teacher.clip_high": ("models: {teacher: {clip_high: 0.28}}", EVERY_TEACHER),
    "models.teacher.kind": ("models: {teacher: {kind: ppo}}", EVERY_TEACHER),
    "models.teacher.engine": ("models: {teacher: {engine: vllm}}", EVERY_TEACHER),
    "models.teacher.early_stopping": ("models: {teacher: {early_stopping: {every: 2, problems: 8}}}", EVERY_TEACHER),
    "models.teacher.steps": ("models: {teacher: {steps: 5}}", EVERY_TEACHER),
    "a model more": ("models: {other: {kind: grpo, init: base, steps: 2}}",
                     {"train_rl": 1, "tokenize_prompts": 1, "evaluate_model": 1, **TABLES}),
    # training
    "training.lr": ("training: {lr: 2.0e-4}", EVERY_RUN),
    "training.lr of one run": ("runs: {opd: {training: {lr: 2.0e-4}}}", NEW_RUN),
    "training.checkpoint_steps of one run": (
        "runs: {opd: {training: {checkpoint_steps: [2]}}}",
        {"train_segment": 4, "evaluate": 4, "collect_run": 2, **dynamics(1, 1), **TABLES},
    ),
    "training.temperature": ("training: {temperature: 0.9}", EVERY_PAIR),
    "training.max_new_tokens": ("training: {max_new_tokens: 12}", {"evaluate_model": 2, **EVERY_PAIR, **dynamics(3, 4)}),
    "training.importance_ratio_cap": ("training: {importance_ratio_cap: 4}", EVERY_RUN),
    "the gate's difficulty in one run": (
        "runs: {effopd: {extrapolation: {gate: {difficulty: {min: 4}}}}}",
        AFTER_A_GATE,
    ),
    "training.lora of one run": ("runs: {opd: {training: {lora: {rank: 2}}}}", {"preflight": 1, **NEW_RUN}),
    "training.objective": ("training: {objective: {support: top_k, top_k: 5}}", EVERY_RUN),
    "training.horizon of one run": ("runs: {opd: {training: {horizon: {tokens: 6}}}}", NEW_RUN),
    "training.batch_size": ("training: {batch_size: 4}", EVERY_PAIR),
    "training.engine": ("training: {engine: vllm, engine_dtype: bfloat16}", EVERY_PAIR),
    "training.scored_by": (
        "training: {scored_by: endpoint}\nruntime: {endpoints: {teacher: {url: 'http://localhost:1/v1', model: t}}}",
        EVERY_PAIR,
    ),
    "training.num_processes": ("training: {batch_size: 4, num_processes: 2}", EVERY_PAIR),
    "training.precision": ("training: {precision: bfloat16, zero_stage: 1}", {**EVERY_PAIR, **dynamics(3, 4)}),
    "training.zero_stage": ("training: {zero_stage: 2}", EVERY_PAIR),
    "training.micro_batch": ("training: {micro_batch: 4}", EVERY_PAIR),
    "training.gradient_checkpointing": ("training: {gradient_checkpointing: true}", EVERY_PAIR),
    "training.offload_optimizer": ("training: {offload_optimizer: true, zero_stage: 1}", EVERY_PAIR),
    "training.teacher of one run": ("runs: {opd: {training: {teacher: base}}}", {"evaluate_model": 2, "preflight": 1, **NEW_RUN}),
    # checks: what has passed is not checked again
    "preflight.problems": ("preflight: {problems: 8}", CONFIG),
    "preflight.accept": ("preflight: {accept: [teacher_accuracy]}", CONFIG),
    "estimate.completion_share": ("estimate: {completion_share: 0.8}", {}),
    # more of the same: only the new part
    "training.steps, one trigger more": (
        "training: {steps: 8}",
        {"train_segment": 6, "evaluate": 6, "evaluate_candidates": 4, "select_candidate": 4, "collect_run": 6,
         **dynamics(3, 3), **TABLES},
    ),
    "triggers listed": ("extrapolation: {triggers: [1, 2, 4]}", CONFIG),
    "a seed more": (
        "seeds: [0, 1, 2]",
        {"train_segment": 9, "evaluate": 9, "evaluate_candidates": 6, "select_candidate": 6, "collect_run": 3, **TABLES},
    ),
    "a seed less": ("seeds: [0]", TABLES),
    "a run more": ("runs: {another: {training: {lr: 2.0e-4}, extrapolation: {triggers: none}}}", NEW_RUN),
    # extrapolation
    "moments of one run": ("runs: {effopd: {extrapolation: {moments: scaled}}}", AFTER_A_JUMP),
    "a jump after every step": (
        "runs: {effopd: {extrapolation: {triggers: every_step, gate: {metric: reverse_kl, source: rollouts}}}}", NEW_RUN,
    ),
    "coefficients": ("extrapolation: {coefficients: [2, 4]}", BOTH_RUNS_AFTER_A_GATE),
    "search": ("runs: {effopd: {extrapolation: {search: all}}}", AFTER_A_GATE),
    "accept": ("runs: {effopd: {extrapolation: {accept_ties: false}}}", AFTER_A_GATE),
    "anchor": ("runs: {effopd: {extrapolation: {anchor: raw}}}", AFTER_A_GATE),
    "parameters": ("runs: {effopd: {extrapolation: {parameters: all}}}", AFTER_A_GATE),
    "gate.metric": ("runs: {effopd: {extrapolation: {gate: {metric: reverse_kl}}}}", AFTER_A_GATE),
    "gate.examples": ("extrapolation: {gate: {examples: 9}}", BOTH_RUNS_AFTER_A_GATE),
    "gate.source": ("runs: {effopd: {extrapolation: {gate: {source: validation}}}}", AFTER_A_GATE),
    "gate.source of rollouts": ("runs: {line: {extrapolation: {gate: {source: train}}}}", AFTER_A_GATE),
    "gate.paired": ("runs: {effopd: {extrapolation: {gate: {paired: true}}}}", AFTER_A_GATE),
    # looking at results
    "evaluation.samples": ("evaluation: {samples: 2}", {"evaluate_model": 2, **EVERY_STATE}),
    "evaluation.kept_samples": ("evaluation: {kept_samples: 2}", {"evaluate_model": 2, **EVERY_STATE}),
    "evaluation.seed": ("evaluation: {seed: 1}", {"evaluate_model": 2, **dynamics(0, 4), **EVERY_STATE}),
    "evaluation.engine": ("evaluation: {engine: vllm}", {"evaluate_model": 2, **dynamics(0, 4), **EVERY_STATE}),
    "evaluation.confidence": ("evaluation: {confidence: 0.9}", {**dynamics(0, 0), **TABLES}),
    "evaluation.reference": ("evaluation: {reference: line}", TABLES),
    "a reference of one run": ("runs: {effopd: {reference: line}}", TABLES),
    "a group": ("runs: {effopd: {group: searches}}", {**LOOKS, **TABLES, "plot_figure": 6}),
    "evaluation.baseline": ("evaluation: {baseline: effopd}", {**LOOKS, **TABLES}),
    "a label": ("runs: {effopd: {label: Jump}}", {**LOOKS, **FIGURES}),
    "one figure's width": ("figures: {accuracy_vs_steps: {width: 7.0}}", {**CONFIG, "plot_figure": 1}),
    # weights
    "dynamics.tolerance": ("dynamics: {tolerance: 0.01}", {**dynamics(4, 0), **CONFIG}),
    "dynamics.problems": ("dynamics: {problems: 9}", {**dynamics(0, 4), **CONFIG}),
    "dynamics.window.width": ("dynamics: {window: {width: 1}}", {**dynamics(0, 4), **CONFIG}),
    "dynamics.interventions": ("dynamics: {interventions: [path]}", {**dynamics(0, 4), "plot_weight_figure": 6, **CONFIG}),
    "dynamics without interventions": ("dynamics: {interventions: []}", {**dynamics(0, 0), "plot_weight_figure": 5, **CONFIG}),
    "dynamics.seeds": ("dynamics: {seeds: all}", {**dynamics(3, 3), **CONFIG}),
    "dynamics.runs": ("dynamics: {runs: [opd]}", {**dynamics(0, 0), "write_explorer": 1, **CONFIG}),
    "dynamics.models": ("dynamics: {models: [teacher, base]}", {**dynamics(1, 1), **CONFIG}),
    "dynamics.enabled": ("dynamics: {enabled: false}", CONFIG),
    # how training is cut into jobs
    "runtime.vllm": ("runtime: {vllm: {max_sequences: 8}}", {}),
    "execution.shards without stages": ("execution: {shards: 1}", {}),
    "execution.mode": ("execution: {mode: staged}", STAGED),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_key_reruns_exactly_what_depends_on_it(undisturbed, tmp_path, change):
    overlay, expected = CHANGES[change]
    path = tmp_path / "overlay.yaml"
    path.write_text(overlay)
    assert undisturbed.planned("--configfile", str(path)) == expected


MODULES = {
    "stages/make_data.py": EVERYTHING,
    "stages/tokenize_prompts.py": EVERY_PROMPT,
    "stages/pretrain_model.py": EVERY_MODEL,
    "stages/train_rl.py": EVERY_TEACHER,
    "reinforcement/updates.py": EVERY_TEACHER,
    "stages/train_sft.py": {},  # no model of this experiment (test_sft.py)
    "stages/sample_responses.py": {},
    "training/model_folder.py": EVERY_MODEL,
    "stages/preflight.py": {},
    "preflight/tokens.py": {},
    "preflight/gate_sight.py": {},
    "workflow/estimates/memory.py": {},
    "workflow/estimates/parts.py": {},
    "stages/segments.py": EVERY_RUN,
    "distillation/segment.py": EVERY_RUN,
    "stages/evaluate_candidates.py": BOTH_RUNS_AFTER_A_GATE,
    "stages/select_candidate.py": {**BOTH_RUNS_AFTER_A_GATE, "evaluate_candidates": 8},  # at step 1 nothing precedes it
    "stages/evaluate.py": {"evaluate_model": 2, **EVERY_STATE},
    "stages/collect_run.py": {"collect_run": 6, **TABLES},
    "stages/make_tables.py": TABLES,
    "stages/make_task_table.py": {},  # this experiment is evaluated on no other task (test_other_tasks.py)
    "stages/analyze_weights.py": {**dynamics(4, 0), **REPORT},
    "stages/evaluate_interventions.py": {**dynamics(0, 4), **REPORT},
    "stages/make_dynamics_tables.py": {**dynamics(0, 0), **REPORT},
    "dynamics/spectra.py": {**dynamics(4, 4), **REPORT},
    "dynamics/variants.py": {**dynamics(0, 4), **REPORT},
    "dynamics/variant_weights.py": {**dynamics(0, 4), **REPORT},
    "report/dynamics_findings.py": REPORT,
    "stages/plot_figure.py": {"plot_figure": 5, **WEIGHT_FIGURES, **REPORT},
    "stages/write_explorer.py": {"write_explorer": 1, **REPORT},
    "report/figures/weights.py": {"plot_figure": 5, **LOOKS, **REPORT},
    "report/templates/explorer.html.jinja": {"write_explorer": 1, **REPORT},
    "dynamics/paper.py": {"compare_with_paper": 1, **REPORT},
    "stages/write_config.py": {"write_config": 1},
    "stages/write_report.py": REPORT,
    "report/findings.py": REPORT,
    "evaluation/comparison.py": TABLES,
    "evaluation/flops.py": TABLES,
    "evaluation/kept_samples.py": {"evaluate_model": 2, **EVERY_STATE},
    "report/samples.py": REPORT,
    "report/figures/groups.py": {"plot_figure": 5, **WEIGHT_FIGURES, **REPORT},
    "report/templates/report.html.jinja": REPORT,
    "losses/divergences.py": EVERY_MODEL,
    "training/master_weights.py": EVERY_MODEL,
    "training/deepspeed_compat.py": EVERY_MODEL,
    "training/resume.py": EVERY_MODEL,
    "training/lora.py": {},  # no run of this experiment
    "engines/transformers_engine.py": {**EVERY_TEACHER, "evaluate_model": 2},
    "engines/decoders.py": {**EVERY_TEACHER, "evaluate_model": 2},
    "engines/vllm_engine.py": {},  # no engine of this experiment
    "teachers/endpoint.py": {},
    "extrapolation/search.py": BOTH_RUNS_AFTER_A_GATE,
    "extrapolation/gate.py": BOTH_RUNS_AFTER_A_GATE,
    "extrapolation/driver.py": BOTH_RUNS_AFTER_A_GATE,
    "evaluation/rollout_gate.py": BOTH_RUNS_AFTER_A_GATE,
    "distillation/every_step.py": {},  # no run of this experiment extrapolates after every step
    "extrapolation/predictors.py": {},  # nothing is predicted in this experiment (test_predictions.py)
    "stages/predict_weights.py": {},
    "integrations/transformers.py": {},
    "tasks/arithmetic.py": EVERYTHING,
    "tasks/mathematics.py": {},  # no task of this experiment
    "sandbox/supervisor.py": {},
    "artifacts/manifests.py": {},
    "config/load.py": {},
    "config/checks.py": {},
    "workflow/job_specs.py": {},
    "cli/commands.py": {},
    "../snakemake_logger_plugin_effopd/__init__.py": {},
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A copy of the package to edit."""
    return shutil.copytree(ROOT / "src", tmp_path_factory.mktemp("edited") / "src")


@pytest.mark.parametrize("module", MODULES)
def test_a_changed_module_reruns_exactly_the_stages_that_use_it(undisturbed, sources, module):
    path = sources / "effopd" / module
    text = path.read_text()
    edited = Workflow(undisturbed.folder, environment={"PYTHONPATH": str(sources)})
    try:
        path.write_text(text + ("<!-- -->" if path.suffix == ".jinja" else "\nCHANGED = True\n"))
        expected = MODULES[module]
        assert edited.planned() == (expected if "write_config" in module else without_config(expected))
    finally:
        path.write_text(text)


def test_explanations_rerun_nothing(undisturbed, tmp_path):
    sources = shutil.copytree(ROOT / "src", tmp_path / "src")
    for path in sources.glob("effopd/**/*.py"):
        text = path.read_text()
        assert text.startswith('"""')
        path.write_text('"""In other words: ' + text.removeprefix('"""') + "\n# A comment.\n")
    assert Workflow(undisturbed.folder, environment={"PYTHONPATH": str(sources)}).planned() == {}


def append_a_space(path):
    path.write_text(path.read_text() + " ")


FILES = {
    "data/arithmetic/manifest.json": (append_a_space, EVERY_MODEL),
    "models/base/manifest.json": (append_a_space, EVERY_PROMPT),
    "runs/effopd/seed0/extrapolation/4/candidates.json": (
        append_a_space, {"select_candidate": 1, "evaluate": 1, "collect_run": 1, **dynamics(1, 1), **TABLES},
    ),
    "evaluation/opd/seed0/4.json": (append_a_space, TABLES),
    "runs/opd/seed0/state/2/state.json": (
        Path.unlink, {"train_segment": 2, "evaluate": 2, "collect_run": 1, **dynamics(1, 1), **TABLES},
    ),
    "runs/opd/seed0/metrics.parquet": (Path.unlink, {"collect_run": 1, **TABLES}),
    "tables/models.csv": (Path.unlink, TABLES),
    "dynamics/opd/seed0/weight_analysis.json": (Path.unlink, {**dynamics(1, 0), **REPORT}),
    "dynamics/models/teacher/interventions.json": (append_a_space, {**dynamics(0, 0), **REPORT}),
    "tables/dynamics_spectra.csv": (Path.unlink, {**dynamics(0, 0), **REPORT}),
    "preflight/{pair}.json": (append_a_space, EVERY_RUN),
    "preflight/{pair}.checks.json": (Path.unlink, {}),
    "models/teacher/manifest.json": (Path.touch, {}),  # small inputs are compared by content
    "runs/opd/seed0/state/2/weights.safetensors": (Path.touch, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_reruns_exactly_what_is_made_from_it(copy, name):
    change, expected = FILES[name]
    time.sleep(0.01)  # a later time stamp
    change(copy.path(name.format(pair=Plan(copy.config).preflight("opd"))))
    assert copy.planned() == without_config(expected)


def test_checking_again_retrains_nothing(copy):
    """What says that a pair may be trained is the same file whenever it is made, though what is measured differs."""
    checks = next(copy.folder.glob("results/preflight/*.checks.json"))
    before = checks.read_text()
    copy.run("--until", "preflight", "--forcerun", "preflight")
    assert checks.read_text() != before
    assert copy.planned() == {}


def test_a_fresh_clone_over_an_existing_results_folder_reruns_nothing(copy):
    shutil.rmtree(copy.folder / ".snakemake")
    shutil.rmtree(copy.folder / "logs")
    assert copy.planned() == {}


def test_verify_finds_what_snakemake_cannot_see_without_its_records(copy):
    """A lost .snakemake folder and a changed parameter: the dry run says nothing, the manifests do."""

    def verify(*arguments):
        command = [str(Path(sys.executable).with_name("effopd")), "verify", *arguments]
        return subprocess.run(command, cwd=copy.folder, capture_output=True, text=True)

    shutil.rmtree(copy.folder / ".snakemake")
    assert verify("--configfile", "config/config.yaml").returncode == 0
    copy.config["runs"]["opd"]["training"] = {"lr": 2.0e-4}
    assert copy.planned() == {}
    found = verify("--configfile", "config/config.yaml")
    assert found.returncode == 2
    wrong = {line.split(" ")[0] for line in found.stderr.splitlines() if "would make now" in line}
    states = {f"results/runs/opd/seed{seed}/state/{step}/state.json" for seed in (0, 1) for step in (1, 2, 4)}
    evaluations = {f"results/evaluation/opd/seed{seed}/{step}.json" for seed in (0, 1) for step in (1, 2, 4)}
    analyses = {str(path.relative_to(copy.folder)) for path in copy.folder.glob("results/dynamics/opd/seed*/*.json")}
    assert analyses
    assert wrong == states | evaluations | analyses
    for path in wrong:
        (copy.folder / path).unlink()
    copy.run()
    assert verify("--configfile", "config/config.yaml").returncode == 0
    missing = verify("--configfile", "nothing.yaml")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: nothing.yaml does not exist.")
