"""PEFT's models in the gates of EffOPDCallback. PEFT is no dependency: without it, these tests are skipped."""

import pytest
import torch

from effopd.common.errors import UserError
from effopd.integrations.gates import AccuracyGate, ReverseKLGate
from effopd.models import lm_head as logits
from tiny_models import make_model

peft = pytest.importorskip("peft")
PROMPTS = [f"{a}+{b}=" for a in range(3) for b in range(3)]


def adapted(tokenizer):
    """A LoRA model whose adapters change what it says."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(make_model(0, len(tokenizer)), config)


@pytest.mark.parametrize("at_once", [logits.LOGITS_AT_ONCE, 7 * 16])
def test_gates_judge_the_model_with_its_adapters(tokenizer, monkeypatch, at_once):
    monkeypatch.setattr(logits, "LOGITS_AT_ONCE", at_once)
    merged = adapted(tokenizer).merge_and_unload()
    asking = {"max_new_tokens": 6, "examples": 5}
    for gate in (
        AccuracyGate(PROMPTS, lambda completions, **_: [text.count("1") for text in completions], tokenizer, **asking),
        ReverseKLGate(PROMPTS, make_model(1, len(tokenizer)), tokenizer, **asking),
    ):
        found, right, plain = (gate(m, 1, 0.0) for m in (adapted(tokenizer), merged, make_model(0, len(tokenizer))))
        assert found.value == pytest.approx(right.value, abs=1e-4)
    assert found.value != pytest.approx(plain.value, abs=1e-3)


def test_prompt_tuning_is_refused(tokenizer):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(make_model(0, len(tokenizer)), config)
    with pytest.raises(UserError, match="prompt tuning"):
        ReverseKLGate(PROMPTS, make_model(1, len(tokenizer)), tokenizer, max_new_tokens=6, examples=5)(model, 1, 0.0)
