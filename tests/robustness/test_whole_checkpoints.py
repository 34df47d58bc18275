"""A checkpoint of any family is loaded whole or refused; what transformers loads rightly is not refused."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from effopd.common.errors import UserError
from effopd.models.models import load_model, weights_of
from effopd.models.weight_files import Checkpoint
from tiny_models import FAMILIES, make_family

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]
MIXTURE = {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
# Families with names, fused matrices, buffers or tied heads of their own.
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "gptj": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {},
    "phi3": {},
    "olmo2": {},
    "qwen2_moe": {**MIXTURE, "shared_expert_intermediate_size": 16},
    "qwen3_moe": MIXTURE,
}
TIED = ("qwen2", "gemma", "gemma2", "gemma3_text", "gpt2", "opt", "bloom", "falcon")
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")


def make(family: str, seed: int = 0) -> Any:
    if family in FAMILIES:
        return make_family(family, seed)
    torch.manual_seed(seed)
    sizes = {"vocab_size": 24, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
    chosen = {} if family == "gpt2" else sizes
    config = AutoConfig.for_model(family, **{"vocab_size": 24, "pad_token_id": 0, **chosen, **OTHERS[family]})
    return AutoModelForCausalLM.from_config(config).eval()


SLOW = ("gptj", "opt", "bloom", "falcon", "phi3", "olmo2", "qwen2_moe")
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in (*FAMILIES, *OTHERS)]


@pytest.fixture(scope="module", params=EVERY)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("families") / request.param
    make(request.param).save_pretrained(folder)
    return folder


def rewritten(folder: Path, out: Path, change: Callable[[Tensors], Tensors]) -> Path:
    shutil.copytree(folder, out)
    save_file(change(load_file(folder / "model.safetensors")), out / "model.safetensors", metadata={"format": "pt"})
    return out


def check_read_alike(folder: Path, family: str) -> None:
    """Training and analyses read the weights of the model that was saved."""
    right, loaded = weights_of(make(family)), weights_of(load_model(folder, CPU))
    assert loaded.keys() == right.keys()
    for name, tensor in right.items():
        assert torch.equal(loaded[name], tensor), name
    total = sum(tensor.numel() for tensor in right.values())
    assert sum(torch.Size(stored.shape).numel() for stored in Checkpoint.open(folder).tensors.values()) == total


def check_refused(folder: Path, *words: str) -> None:
    """Training and analyses refuse a folder with the same words."""
    said = []
    for read in (lambda: load_model(folder, CPU), lambda: Checkpoint.open(folder)):
        with pytest.raises(UserError) as caught:
            read()
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert all(word in said[0] for word in words), said[0]


def test_what_transformers_saves_is_whole(saved, tmp_path):
    check_read_alike(saved, saved.name)
    make(saved.name).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    check_read_alike(tmp_path / "sharded", saved.name)


def test_buffers_of_old_versions_are_passed_over(saved, tmp_path):
    buffers = {
        "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "h.0.attn.bias": torch.ones(1, 1, 8, 8).tril().to(torch.uint8),
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "layers.1.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool).tril(),
        "embeddings.position_ids": torch.arange(8)[None],
    }
    prefixed = {f"model.{name}": tensor.clone() for name, tensor in buffers.items()}
    check_read_alike(rewritten(saved, tmp_path / "old", lambda t: t | buffers | prefixed), saved.name)


def test_a_checkpoint_without_any_one_tensor_is_refused(saved, tmp_path):
    names = sorted(load_file(saved / "model.safetensors"))
    for number, name in enumerate(random.Random(saved.name).sample(names, 2)):
        without = rewritten(
            saved, tmp_path / f"without{number}", lambda t, name=name: {n: x for n, x in t.items() if n != name}
        )
        check_refused(without, "" if "experts" in name else name)
        renamed = rewritten(
            saved, tmp_path / f"renamed{number}", lambda t, name=name: {n + "x" * (n == name): x for n, x in t.items()}
        )
        check_refused(renamed)
        longer = rewritten(
            saved, tmp_path / f"longer{number}", lambda t, name=name: t | {name: torch.cat([t[name], t[name][:1]])}
        )
        check_refused(longer, "" if "experts" in name else name)


def test_surplus_tensors_and_layers_are_refused(saved, tmp_path):
    check_refused(rewritten(saved, tmp_path / "a", lambda t: t | {"surplus.weight": torch.zeros(3)}), "surplus.weight")

    def with_a_layer(tensors: Tensors) -> Tensors:
        more = {re.sub(r"\.(layers|h)\.1\.", r".\1.2.", name): x.clone() for name, x in tensors.items()}
        assert len(more.keys() - tensors.keys()) > 5
        return tensors | more

    check_refused(rewritten(saved, tmp_path / "b", with_a_layer), ".2.")
    config = json.loads((saved / "config.json").read_text())
    key = next(key for key in ("num_hidden_layers", "n_layer") if key in config)
    fewer = rewritten(saved, tmp_path / "c", dict)
    (fewer / "config.json").write_text(
        json.dumps({**config, key: 1, "layer_types": (config.get("layer_types") or [])[:1] or None})
    )
    check_refused(fewer, ".1.")


@pytest.mark.parametrize("family", TIED)
def test_a_tied_head_may_be_stored_if_it_is_the_embedding(family, tmp_path):
    model = make(family)
    model.save_pretrained(tmp_path / "saved")
    (head, embedding) = next(iter(model.all_tied_weights_keys.items()))
    for name, more in (("same", 0.0), ("other", 1.0)):
        folder = rewritten(
            tmp_path / "saved", tmp_path / name, lambda t, more=more: t | {head: t[embedding].clone() + more}
        )
        if more:
            check_refused(folder, head, embedding)
        else:
            check_read_alike(folder, family)
    folder = rewritten(
        tmp_path / "saved", tmp_path / "only", lambda t: {head if n == embedding else n: x for n, x in t.items()}
    )
    check_read_alike(folder, family)


@pytest.mark.parametrize("family", TIED)
def test_names_without_the_prefix_of_the_base_model(family, tmp_path):
    """As a base model saves itself, and as GPT-2 is on the hub."""
    model = make(family)
    model.base_model.save_pretrained(tmp_path / "base")
    assert "lm_head.weight" not in load_file(tmp_path / "base/model.safetensors")
    loaded = weights_of(load_model(tmp_path / "base", CPU))
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights_of(model).items())
    prefix = model.base_model_prefix
    both = rewritten(tmp_path / "base", tmp_path / "both", lambda t: t | {f"{prefix}.{n}": x + 1 for n, x in t.items()})
    with pytest.raises(UserError, match="both with and without the prefix"):
        load_model(both, CPU)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_numbered_without_gaps(family, tmp_path):
    make(family).save_pretrained(tmp_path / "saved")

    def moved(tensors: Tensors) -> Tensors:
        found = {name.replace(".experts.1.", ".experts.7."): tensor for name, tensor in tensors.items()}
        assert found.keys() != tensors.keys()
        return found

    check_refused(rewritten(tmp_path / "saved", tmp_path / "moved", moved), ".experts.1.")
    for number in (0, 1):
        check_refused(
            rewritten(
                tmp_path / "saved",
                tmp_path / f"without{number}",
                lambda t, n=number: {name: x for name, x in t.items() if f".experts.{n}." not in name},
            ),
            "experts",
        )


def test_a_model_that_is_not_of_language_is_analyzed_by_its_own_class(tmp_path):
    """Reward models have a score in the place of the head: they can be compared, and not trained."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, head_dim=4, pad_token_id=0)  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    assert "score.weight" in Checkpoint.open(tmp_path / "reward").tensors
    with pytest.raises(UserError, match=r"`architectures` is \['LlamaForSequenceClassification'\], which is no causal"):
        load_model(tmp_path / "reward", CPU)
    path = tmp_path / "reward/config.json"
    path.write_text(path.read_text().replace("LlamaForSequenceClassification", "LlamaForCausalLM"))
    with pytest.raises(UserError, match=r"lacks lm_head.weight; it has score.weight besides"):
        load_model(tmp_path / "reward", CPU)
