"""What the core of the package is for, as a program for an environment that holds nothing else.

`python core_program.py FOLDER` extrapolates in a callback, then writes checkpoints into FOLDER: base and step-1 to step-6,
each further along the same update. It prints nothing, and fails with an assertion.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerControl, TrainerState

from effopd.integrations.gates import AccuracyGate, ReverseKLGate
from effopd.integrations.transformers import EffOPDCallback

BEST = 4.0  # the coefficient that the gate likes best


def main(folder: Path) -> None:
    assert AccuracyGate.metric != ReverseKLGate.metric
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update = {name: 1e-3 * torch.randn_like(value) for name, value in before.items()}

    def put(multiple: float) -> None:
        model.load_state_dict({name: before[name] + multiple * update[name] for name in before})

    name = "model.layers.0.mlp.up_proj.weight"

    def gate(model: torch.nn.Module, step: int, coefficient: float) -> float:
        return -float((model.state_dict()[name] - before[name] - (1 + BEST) * update[name]).norm())

    callback = EffOPDCallback(gate, triggers=[1])
    arguments, state = SimpleNamespace(output_dir=str(folder)), TrainerState(max_steps=1)
    callback.on_train_begin(arguments, state, TrainerControl(), model=model)
    put(1)
    state.global_step = 1
    callback.on_step_end(arguments, state, TrainerControl(), model=model)
    (decision,) = callback.decisions
    assert decision["coefficient"] == BEST, decision
    torch.testing.assert_close(model.state_dict()[name], before[name] + (1 + BEST) * update[name])
    (written,) = (folder / "extrapolation/1").glob("*.json")
    assert json.loads(written.read_text())["result"]["coefficient"] == BEST

    put(0)
    model.save_pretrained(folder / "base")
    for step in range(1, 7):
        put(step)
        model.save_pretrained(folder / f"step-{step}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
