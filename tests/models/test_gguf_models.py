"""GGUF files: the same model as its weights in a Hugging Face folder, or one line why not."""

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effopd.cli.commands import run_verb
from effopd.common.errors import ArtifactError
from effopd.models.gguf_models import write_dequantized
from effopd.models.models import load_model, load_tokenizer, load_weights_into, save_model, weights_of
from effopd.models.weight_files import Checkpoint
from tiny_gguf import MERGES, TOKENS, GGMLQuantizationType, gguf_tensors, quants, tiny_llama, write_gguf
from tiny_models import CHAT_TEMPLATE, byte_tokenizer

CPU = torch.device("cpu")
IDS = torch.arange(2, 40)[None]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    return made


@pytest.mark.parametrize("tied", [False, True])
def test_its_logits_are_those_of_the_same_weights_in_a_folder(tmp_path, folder, tied):
    model = tiny_llama(tie_word_embeddings=tied)
    save_model(model.config, weights_of(model), byte_tokenizer(), tmp_path / "normal")
    write_dequantized(write_gguf(tmp_path / "tiny.gguf", model), folder)
    logits = [load_model(one, CPU)(IDS).logits for one in (folder, tmp_path / "normal")]
    assert torch.equal(*logits)
    assert load_model(folder, CPU).config.tie_word_embeddings is tied


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q5_0", "Q4_0", "Q4_1"])
def test_quantized_weights_are_what_the_format_says(tmp_path, folder, name):
    kind, model = GGMLQuantizationType[name], tiny_llama(intermediate_size=64)
    expected = {}
    for key, weight in weights_of(model).items():
        quantized = quants.dequantize(quants.quantize(weight.numpy(), kind), kind) if weight.ndim == 2 else weight
        expected[key] = torch.tensor(np.asarray(quantized))
    write_dequantized(write_gguf(tmp_path / "tiny.gguf", model, quantization=kind), folder)
    loaded = load_model(folder, CPU)
    weights = weights_of(loaded)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert {stored.dtype for stored in Checkpoint.open(folder).tensors.values()} == {"F32"}
    load_weights_into(model, expected)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_its_tokenizer_has_the_files_tokens_and_chat_template_and_no_others(tmp_path, folder):
    write_dequantized(write_gguf(tmp_path / "tiny.gguf", tiny_llama()), folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.get_vocab() == {token: number for number, token in enumerate(TOKENS)}
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template) == ("</s>", "<pad>", CHAT_TEMPLATE)
    text = "hello, wörld 12</s>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("he")["input_ids"] == [TOKENS.index(MERGES[0].replace(" ", ""))]


def test_what_lies_beside_the_file_is_not_read(tmp_path, folder):
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "adapter_config.json",
    ):
        (tmp_path / name).write_text("{")
    write_dequantized(write_gguf(tmp_path / "tiny.gguf", tiny_llama()), folder)
    assert not (folder / "adapter_config.json").exists()


def of_tensors(change):
    tensors = gguf_tensors(tiny_llama())
    change(tensors)
    return {"tensors": tensors}


WRONG = {
    "one of several parts": (lambda: {"split__count": 3}, "is one of 3 parts. Merge them (`llama-gguf-split --merge`)"),
    "scaled positions": (lambda: {"llama__rope__scaling__type": "yarn"}, "scales rotary positions (llama.rope.scaling.type is 'yarn')"),
    "factors of positions": (lambda: of_tensors(lambda t: t.update({"rope_freqs.weight": np.ones(4, np.float32)})), "holds 32,100 numbers, among them rope_freqs.weight, which scales rotary positions"),
    "biases": (lambda: of_tensors(lambda t: t.update({"blk.0.attn_q.bias": np.ones(32, np.float32)})), "holds 32,128 numbers, and the LlamaForCausalLM that transformers makes of it 32,096: it would not be the same"),
    "a missing tensor": (lambda: of_tensors(lambda t: t.pop("blk.1.ffn_up.weight")), "it would not be the same model. Take the model as safetensors."),
    "another name": (lambda: of_tensors(lambda t: t.update({"blk.0.odd.weight": t.pop("blk.0.ffn_norm.weight")})), "missing: model.layers.0.post_attention_layernorm.weight"),
    "an unknown family": (lambda: {"general__architecture": "nobody"}, "is not a GGUF file of a causal language model that transformers reads"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_would_be_another_model_is_refused(tmp_path, folder, name):
    change, words = WRONG[name]
    values = change()
    if "general__architecture" in values:
        file = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
        file.write_bytes(file.read_bytes().replace(b"llama", b"nobod"))
    else:
        file = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), **values)
    with pytest.raises(ArtifactError) as refusal:
        write_dequantized(file, folder)
    assert words in str(refusal.value)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_the_extra_it_is_named(tmp_path, monkeypatch, capfd, package):
    file, out = write_gguf(tmp_path / "tiny.gguf", tiny_llama()), tmp_path / "models/tiny/manifest.json"
    monkeypatch.setitem(sys.modules, package, None)
    spec = {
        "model": {"kind": "pretrained", "path": str(file), "dtype": "float32", "trust_remote_code": False},
        "code": "x",
    }
    assert run_verb(["fetch-model", "--spec", json.dumps(spec), "--out", str(out)]) == 2
    assert capfd.readouterr().err == (
        f"error: `effopd fetch-model` needs {package}, which is not installed here. It comes with the extra `gguf`: "
        "pip install 'effopd[gguf]'\n"
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_damage_ends_in_a_whole_model_or_one_line(whole, tmp_path_factory, data):
    place = tmp_path_factory.mktemp("damaged")
    content = bytearray(whole.read_bytes())
    for where in data.draw(st.lists(st.integers(0, 9000), min_size=1, max_size=3)):
        content[where] = data.draw(st.integers(0, 255))
    file = place / "tiny.gguf"
    file.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 1, len(content) // 2]))])
    (place / "made").mkdir()
    said = ""
    try:
        write_dequantized(file, place / "made")
    except ArtifactError as error:
        said = str(error)
    assert "\n" not in said
    assert said or load_model(place / "made", CPU)(IDS).logits.shape == (1, IDS.shape[1], len(TOKENS))
