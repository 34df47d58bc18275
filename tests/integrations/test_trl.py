"""EffOPDCallback in real TRL trainers: decides as the workflow does, resumes as if never stopped, and leaves no mess."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from effopd.artifacts.manifests import read_manifest, write_manifest
from effopd.common.errors import UserError
from effopd.data.prompts import load_prompts
from effopd.extrapolation.candidates import candidate
from effopd.extrapolation.modules import by_module
from effopd.integrations.gates import AccuracyGate, ReverseKLGate
from effopd.integrations.transformers import EffOPDCallback
from effopd.models.models import load_tensors, save_model, weights_of
from effopd.specs.read import read_spec
from effopd.stages.evaluate_candidates import evaluate_candidates
from effopd.stages.make_data import make_data
from effopd.stages.select_candidate import select_candidate
from effopd.stages.tokenize_prompts import tokenize_prompts
from effopd.training.checkpoints import Point, save_state
from effopd.training.trainer import OptimizerState
from tiny_models import TASK_SECTION, make_model
from trl_runs import Capture, CaptureAfter, arguments, distil

PROMPTS = [f"{a}+{b}+{c}=" for a in range(4) for b in range(4) for c in range(3)]


@pytest.fixture
def workflow(tmp_path, tokenizer):
    """A results folder with data, prompts, a student and a teacher, made by the workflow's own stages."""
    root = tmp_path / "results"
    data = root / "data/arithmetic/manifest.json"
    make_data(read_spec("make_data", {"task": TASK_SECTION}), data)
    for name, seed in (("student", 0), ("teacher", 1)):
        folder = root / "models" / name
        model = make_model(seed, len(tokenizer))
        save_model(model.config, weights_of(model), tokenizer, folder)
        files = {file.name: file for file in folder.iterdir()}
        write_manifest(
            folder / "manifest.json", kind="model", spec={"seed": seed}, parents={}, files=files, started=time.time()
        )
    prompts = data.parent / "prompts-student/manifest.json"
    tokenize_prompts(
        read_spec("tokenize_prompts", {"prompt": None}), data, root / "models/student/manifest.json", prompts
    )
    return root


def workflow_decisions(root, weights, extrapolation, metric):
    """What `evaluate-candidates` and `select-candidate` decide for these weights at the triggers; decisions by step."""
    student, teacher = (root / f"models/{name}/manifest.json" for name in ("student", "teacher"))
    anchor, anchor_decision, found = student, None, {}
    for step in (1, 2, 4):
        state = root / f"state/{step}/state.json"
        files = save_state(state.parent, weights[step], OptimizerState(step, {"exp_avg.x": torch.zeros(1)}))
        write_manifest(
            state, kind="state", spec={}, parents={}, files=files, result={"step": step}, started=time.time()
        )
        candidates, decision = (root / f"extrapolation/{step}/{name}.json" for name in ("candidates", "decision"))
        spec = {
            "seed": 0,
            "step": step,
            "extrapolation": {
                **extrapolation,
                "gate": {
                    "metric": metric,
                    "examples": 10,
                    "source": "train",
                    "samples": 2,
                    "paired": metric != "accuracy",
                    "difficulty": {},
                },
            },
            "sampling": {"temperature": 1.0, "max_new_tokens": 8},
            "precision": "float32",
            "engine": {"name": "transformers"},
            "parts": {},
            "task": {"name": "arithmetic"},
        }
        common = {"state": state, "anchor": anchor, "anchor_decision": anchor_decision}
        evaluate_candidates(
            read_spec("evaluate_candidates", spec),
            student=student,
            teacher=teacher,
            prompts=root / "data/arithmetic/prompts-student/manifest.json",
            out=candidates,
            device=torch.device("cpu"),
            **common,
        )
        ray = {key: spec[key] for key in ("seed", "step", "parts")} | {"extrapolation": extrapolation}
        select_candidate(read_spec("select_candidate", ray), candidates=[candidates], out=decision, **common)
        found[step] = read_manifest(decision, "decision")
        anchor, anchor_decision = state, decision
    return found


@pytest.mark.parametrize(
    ("metric", "settings"),
    [
        ("reverse_kl", {"search": "line", "accept_ties": True, "anchor": "accepted"}),
        ("accuracy", {"search": "first_failure", "accept_ties": True, "anchor": "raw"}),
    ],
)
def test_the_decisions_are_those_of_the_workflow_for_the_weights_that_trl_trained(
    workflow, tokenizer, tmp_path, task, metric, settings
):
    """Bit for bit: gate values of every item, norms of the updates, coefficients, and the weights gone on from."""
    settings = {"coefficients": [0.5, 1.0], "parameters": "attention_mlp", **settings}
    prompts = load_prompts(read_manifest(workflow / "data/arithmetic/prompts-student/manifest.json"), "train")
    asking = {"max_new_tokens": 8, "examples": 10, "samples": 2, "paired": metric != "accuracy"}

    def reward(prompts, completions, problem, **_):
        return [verdict.reward for verdict in task.verify_all(problem, completions)]

    if metric == "accuracy":
        gate = AccuracyGate(prompts.tokens, reward, tokenizer, columns={"problem": prompts.problems}, **asking)
    else:
        gate = ReverseKLGate(prompts.tokens, make_model(1, len(tokenizer)), tokenizer, **asking)
    before, after = Capture(), CaptureAfter()
    callback = EffOPDCallback(gate, **settings)
    distil(tmp_path / "trl", tokenizer, PROMPTS, [before, callback, after])
    decisions = workflow_decisions(workflow, before.weights, settings, metric)
    assert any(decision.result["coefficient"] != 0 for decision in decisions.values()), "nothing was accepted"
    for step, decision in decisions.items():
        ours = read_manifest(tmp_path / f"trl/extrapolation/{step}/decision.json", "decision")
        assert ours.result == decision.result
        went_on = Point.open(workflow / f"state/{step}/state.json", decision.path).weights()
        assert all(torch.equal(went_on[name], after.weights[step][name]) for name in went_on)


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tokenizer, tmp_path):
    def callback():
        gate = ReverseKLGate(PROMPTS, make_model(1, len(tokenizer)), tokenizer, max_new_tokens=8, examples=8)
        return EffOPDCallback(gate, search="line")

    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = distil(tmp_path / "whole", tokenizer, PROMPTS, [callback()], **saving)
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "part/checkpoint-3")
    resumed = callback()
    checkpoint = str(tmp_path / "part/checkpoint-3")
    part = distil(tmp_path / "part", tokenizer, PROMPTS, [resumed], resume=checkpoint, **saving)
    assert [decision["step"] for decision in resumed.decisions] == [1, 2, 4]
    decisions = [read_manifest(tmp_path / name / "extrapolation/4/decision.json").result for name in ("whole", "part")]
    assert decisions[0] == decisions[1]
    for name, tensor in weights_of(whole.model).items():
        assert torch.equal(tensor, weights_of(part.model)[name])
    (tmp_path / "part/checkpoint-3/effopd.json").unlink()
    with pytest.raises(UserError, match="checkpoint-3 lacks effopd.json: without the anchor"):
        distil(tmp_path / "part", tokenizer, PROMPTS, [callback()], resume=checkpoint, **saving)
    elsewhere = callback()
    elsewhere.resume_from = tmp_path / "whole/checkpoint-4"
    with pytest.raises(UserError, match="are not those of .*checkpoint-4"):
        distil(tmp_path / "part", tokenizer, PROMPTS, [elsewhere], resume=checkpoint, **saving)


def test_a_gate_that_fails_leaves_no_candidate_in_the_model_and_a_gate_changes_no_later_draw(tokenizer, tmp_path):
    seen = Capture()

    def failing(model, step, coefficient):
        assert not model.training
        if step == 2 and coefficient == 4:
            raise RuntimeError("the gate broke")
        torch.rand(3)
        return coefficient if step == 2 else -coefficient

    class Keep(Capture):
        """Holds on to the model itself."""

        def on_train_begin(self, args, state, control, **kwargs):
            self.model = kwargs["model"]

    kept = Keep()
    with pytest.raises(RuntimeError, match="the gate broke"):
        distil(tmp_path / "a", tokenizer, PROMPTS, [kept, seen, EffOPDCallback(failing)], steps=2)
    assert all(torch.equal(tensor, seen.weights[2][name]) for name, tensor in weights_of(kept.model).items())
    plain = Capture()
    distil(tmp_path / "b", tokenizer, PROMPTS, [plain], steps=2)
    assert all(torch.equal(tensor, seen.weights[2][name]) for name, tensor in plain.weights[2].items())
    result = read_manifest(tmp_path / "a/extrapolation/1/decision.json", "decision").result
    assert (result["metric"], result["coefficient"], result["reason"]) == ("failing", 0.0, "no candidate was accepted")


def test_moments_stay_and_accepted_weights_are_the_candidate(tokenizer, tmp_path):
    """At bf16 autocast, whose master weights are the model's own."""
    held = {}

    def moments():
        optimizer = getattr(held["optimizer"], "optimizer", held["optimizer"])
        return [entry["exp_avg"].clone() for entry in optimizer.state.values()]

    class Hold(Capture):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)
            held["optimizer"] = kwargs["optimizer"]
            held["moments"] = moments()

    hold = Hold()
    callback = EffOPDCallback(lambda model, step, coefficient: coefficient <= 4, triggers=[2], parameters=r"\.mlp\.")
    trainer = distil(tmp_path, tokenizer, PROMPTS, [hold, callback], steps=2, bf16=True)
    anchor = weights_of(make_model(0, len(tokenizer)))
    assert callback.decisions[0]["coefficient"] == 4
    right = candidate(hold.weights[2], anchor, 4.0, [name for name in anchor if ".mlp." in name])
    assert all(torch.equal(tensor, right[name]) for name, tensor in weights_of(trainer.model).items())
    assert all(torch.equal(a, b) for a, b in zip(held["moments"], moments(), strict=True))


def test_after_every_step_a_line_search_starts_where_the_last_one_ended(tokenizer, tmp_path):
    best = {1: 4.0, 2: 8.0, 3: -0.5, 4: 1.0}  # what a gate would find
    callback = EffOPDCallback(
        lambda model, step, coefficient: -abs(coefficient - best[step]),
        triggers="every_step",
        search="line",
        accept_ties=False,
        parameters="all",
    )
    distil(tmp_path, tokenizer, PROMPTS, [callback], steps=4)
    tried = [[trial["coefficient"] for trial in decision["trials"]] for decision in callback.decisions]
    assert [decision["coefficient"] for decision in callback.decisions] == [4.0, 8.0, -0.5, 1.0]
    assert [trials[0] for trials in tried] == [1.0, 4.0, 8.0, 1.0], "after a step back it starts at 1"


def test_by_module_each_part_goes_as_far_as_the_gate_likes_best(tokenizer, tmp_path):
    anchor, seen = weights_of(make_model(0, len(tokenizer))), Capture()
    modules = by_module(anchor)
    best = {"attention": 4 * 2 / 3, "mlp": 4.0, "other": 6.0}

    def gate(model, step, coefficient):
        """How near the coefficient of each module is to the best, read off the weights."""
        weights, current = weights_of(model), seen.weights[1]
        found = {}
        for module, names in modules.items():
            moved, ray = (
                torch.cat([(w[n] - v[n]).flatten() for n in names]) for w, v in ((weights, current), (current, anchor))
            )
            found[module] = float(moved @ ray / (ray @ ray))
        return -sum(abs(found[module] - best[module]) for module in best)

    after = CaptureAfter()
    callback = EffOPDCallback(gate, triggers=[1], search="line_by_module", accept_ties=False, parameters="all")
    distil(tmp_path, tokenizer, PROMPTS, [seen, callback, after], steps=1)
    (decided,) = callback.decisions
    assert (decided["coefficient"], decided["modules"], decided["module_trials"]) == (4.0, best, 2 + 2 + 1)
    assert read_manifest(tmp_path / "extrapolation/1/decision.json", "decision").result == decided
    right = seen.weights[1]
    for module, names in modules.items():
        right = candidate(right, anchor, best[module], names)
    assert all(torch.equal(tensor, after.weights[1][name]) for name, tensor in right.items())


def test_grpo_with_a_reward_function_for_both(tokenizer, tmp_path):
    """The gate takes the reward function of the trainer as it is."""
    asked = []

    def reward(prompts, completions, answer, **_):
        asked.append(len(prompts))
        return [text.count(a) / 8 for text, a in zip(completions, answer, strict=True)]

    answers = [str(i % 10) for i in range(len(PROMPTS))]
    gate = AccuracyGate(PROMPTS, reward, tokenizer, columns={"answer": answers}, max_new_tokens=8, examples=12)
    callback = EffOPDCallback(gate, search="all", triggers=[1, 3])
    trainer = GRPOTrainer(
        model=make_model(0, len(tokenizer)),
        reward_funcs=reward,
        args=GRPOConfig(**arguments(tmp_path, 3, num_generations=2)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "answer": answers}),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    assert asked.count(12) == 2 * 6
    assert [decision["step"] for decision in callback.decisions] == [1, 3]
    assert all(0 <= value <= 1 for value in callback.decisions[0]["current"]["per_item"])


def test_what_cannot_work_is_one_line(tokenizer, tmp_path):
    with pytest.raises(UserError, match="'search' is 'best'. Use one of first_failure, all, line"):
        EffOPDCallback(lambda *_: 0.0, search="best")
    with pytest.raises(UserError, match="'triggers' is 'every'"):
        EffOPDCallback(lambda *_: 0.0, triggers="every")
    with pytest.raises(UserError, match="`examples` is 50, and there are 48 prompts"):
        ReverseKLGate(PROMPTS, make_model(1), tokenizer, max_new_tokens=8)
    model = make_model(0, len(tokenizer)).bfloat16()
    callback = EffOPDCallback(lambda *_: 0.0)
    arguments = type("Arguments", (), {"output_dir": str(tmp_path)})()
    state = type("State", (), {"max_steps": 4, "global_step": 0})()
    with pytest.raises(UserError, match="trained in torch.bfloat16 without float32 master weights"):
        callback.on_train_begin(arguments, state, None, model=model)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_deepspeed_ranks_move_their_float32_masters_alike(tmp_path, stage):
    """ZeRO in bf16: the candidate is made of float32 masters, and both copies of the weights take it on."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = Path(__file__).parents[1] / "helpers" / "zero_ranks.py"
    subprocess.run([*launch, str(script), str(tmp_path), str(stage)], check=True, timeout=300)
    before, anchor, masters, working = (
        load_tensors(tmp_path / f"{name}.safetensors") for name in ("before", "anchor", "masters", "working")
    )
    assert read_manifest(tmp_path / "trainer/extrapolation/2/decision.json", "decision").result["coefficient"] == 2
    right = candidate(before, anchor, 2.0, [name for name in before if ".mlp." in name])
    assert any(not torch.equal(before[name], right[name]) for name in right)
    for name, tensor in right.items():
        assert torch.equal(masters[name], tensor), name
        assert torch.equal(working[name], tensor.bfloat16().float()), name
