"""EffOPDCallback in TRL's GKDTrainer: candidates of the weights that it trained, and resumes as if never stopped."""

import copy
import shutil

import pytest
import torch
from datasets import Dataset

from effopd.artifacts.manifests import read_manifest
from effopd.extrapolation.candidates import candidate, moving_parameters
from effopd.integrations.gates import ReverseKLGate
from effopd.integrations.transformers import EffOPDCallback
from effopd.models.models import weights_of
from tiny_models import make_model
from trl_runs import Capture, CaptureAfter, arguments

pytestmark = pytest.mark.slow
CHATS = [
    [{"role": "user", "content": f"{a}+{b}="}, {"role": "assistant", "content": f"{a}#{b}"}]
    for a in range(6)
    for b in range(6)
]


@pytest.fixture
def chatty(tokenizer):
    """A tokenizer whose chats are their contents, one after the other."""
    found = copy.deepcopy(tokenizer)
    found.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return found


def distil(out, tokenizer, callbacks, steps=4, resume=None, **settings):
    """Half of the steps on rollouts of the student, the others on the data, as GKD mixes them by default."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # trl_runs has silenced its warning

    torch.manual_seed(0)
    general = {k: v for k, v in arguments(out, steps, **settings).items() if k != "max_completion_length"}
    trainer = GKDTrainer(
        model=make_model(0, len(tokenizer)),
        teacher_model=make_model(1, len(tokenizer)),
        args=GKDConfig(**general, max_new_tokens=8, max_length=32, temperature=1.0),
        train_dataset=Dataset.from_dict({"messages": CHATS}),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def callback(tokenizer):
    questions = [chat[:1] for chat in CHATS]
    gate = ReverseKLGate(questions, make_model(1, len(tokenizer)), tokenizer, max_new_tokens=8, examples=8)
    return EffOPDCallback(gate, search="line")


def test_what_is_accepted_is_the_candidate_of_what_gkd_trained(chatty, tmp_path):
    before, ours, after = Capture(), callback(chatty), CaptureAfter()
    distil(tmp_path, chatty, [before, ours, after])
    assert [decision["step"] for decision in ours.decisions] == [1, 2, 4]
    assert any(decision["coefficient"] != 0 for decision in ours.decisions), "nothing was accepted"
    anchor = weights_of(make_model(0, len(chatty)))
    for decision in ours.decisions:
        step = decision["step"]
        assert read_manifest(tmp_path / f"extrapolation/{step}/decision.json", "decision").result == decision
        moving = moving_parameters(anchor, "attention_mlp")
        right = before.weights[step]
        if decision["coefficient"] != 0:
            right = candidate(right, anchor, decision["coefficient"], moving)
        assert all(torch.equal(after.weights[step][name], right[name]) for name in right)
        anchor = right
    assert all(torch.equal(after.weights[3][name], before.weights[3][name]) for name in anchor)  # no trigger


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(chatty, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = distil(tmp_path / "whole", chatty, [callback(chatty)], **saving)
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "part/checkpoint-3")
    resumed = callback(chatty)
    part = distil(tmp_path / "part", chatty, [resumed], resume=str(tmp_path / "part/checkpoint-3"), **saving)
    assert [decision["step"] for decision in resumed.decisions] == [1, 2, 4]
    decisions = [read_manifest(tmp_path / name / "extrapolation/4/decision.json").result for name in ("whole", "part")]
    assert decisions[0] == decisions[1]
    finished = weights_of(part.model)
    assert all(torch.equal(tensor, finished[name]) for name, tensor in weights_of(whole.model).items())
