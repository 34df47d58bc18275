"""Checkpoints as transformers writes them: every name understood, every layout read the same, bad ones refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from effopd.common.errors import UserError
from effopd.models.weight_files import (
    BLOCK_ELEMENTS,
    Checkpoint,
    Parameter,
    blocks,
    parameter_place,
    shared_parameters,
)
from tiny_models import FAMILIES, make_family


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family, as save_pretrained writes it."""
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        make_family(family, 0).save_pretrained(root / family)
    return root


def rewrite(folder, out, change, **settings):
    """A copy of a model folder with `change` applied to its tensors, and `settings` to its configuration."""
    shutil.copytree(folder, out)
    save_file(change(load_file(folder / "model.safetensors")), out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **settings}))
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_of_a_family_has_its_place(folders, family):
    parameters = shared_parameters([Checkpoint.open(folders / family)])
    places = {parameter.name: (parameter.layer, parameter.module) for parameter in parameters}
    layers, modules = {layer for layer, _ in places.values()}, {module for _, module in places.values()}
    assert layers == {0, 1, None}
    expected = {"q", "k", "v", "o", "gate", "up", "down", "norm", "embedding"}
    extra = {"qwen2": {"bias"}, "mixtral": {"router", "lm_head"}, "qwen3": {"lm_head"}, "llama": {"lm_head"}}
    assert modules == expected | extra.get(family, set())
    matrices = [parameter.module for parameter in parameters if parameter.is_projection]
    experts = FAMILIES[family].get("num_local_experts", 1)
    assert {module: matrices.count(module) for module in matrices} == {
        **dict.fromkeys(("q", "k", "v", "o"), 2),
        **dict.fromkeys(("gate", "up", "down"), 2 * experts),
    }
    outside = len(modules & {"lm_head"}) + 2
    assert [parameter.layer is None for parameter in parameters] == [False] * (len(parameters) - outside) + [
        True
    ] * outside


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.11.self_attn.q_proj.weight", (11, "q")),
        ("model.layers.3.self_attn.q_norm.weight", (3, "norm")),
        ("model.layers.3.self_attn.k_proj.bias", (3, "bias")),
        ("model.layers.0.block_sparse_moe.experts.7.w1.weight", (0, "gate")),
        ("model.layers.0.block_sparse_moe.experts.7.w2.weight", (0, "down")),
        ("model.layers.0.block_sparse_moe.experts.7.w3.weight", (0, "up")),
        ("model.layers.0.block_sparse_moe.gate.weight", (0, "router")),
        ("model.layers.5.mlp.experts.12.gate_proj.weight", (5, "gate")),
        ("model.layers.5.mlp.gate.weight", (5, "router")),
        ("model.layers.5.mlp.gate_up_proj.weight", (5, "gate_up")),
        ("model.layers.5.self_attn.qkv_proj.weight", (5, "qkv")),
        ("model.layers.5.pre_feedforward_layernorm.weight", (5, "norm")),
        ("model.language_model.layers.2.mlp.up_proj.weight", (2, "up")),
        ("model.norm.weight", (None, "norm")),
        ("model.embed_tokens.weight", (None, "embedding")),
        ("lm_head.weight", (None, "lm_head")),
        ("model.layers.1.something.new", (1, "other")),
    ],
)
def test_names(name, place):
    assert parameter_place(name) == place


def test_shards_one_file_and_a_bare_file_read_the_same(folders, tmp_path):
    whole = Checkpoint.open(folders / "llama")
    make_family("llama", 0).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded/model.safetensors.index.json").is_file()
    for other in (Checkpoint.open(tmp_path / "sharded"), Checkpoint.open(folders / "llama/model.safetensors")):
        assert other.tensors.keys() == whole.tensors.keys()
        for name in whole.tensors:
            assert torch.equal(other.read(name), whole.read(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_float_type_is_read(folders, tmp_path, dtype):
    name = "model.layers.0.mlp.up_proj.weight"
    folder = rewrite(folders / "llama", tmp_path / "other", lambda t: {n: x.to(dtype) for n, x in t.items()})
    expected = load_file(folders / "llama/model.safetensors")[name].to(dtype)
    assert torch.equal(Checkpoint.open(folder).read(name), expected)
    assert torch.equal(Checkpoint.open(folder).read(name, slice(5, 9)), expected[5:9])


def test_a_tied_head_is_not_counted_twice(folders, tmp_path):
    def with_head(tensors):
        return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}

    tied = rewrite(folders / "qwen2", tmp_path / "tied", with_head)
    assert json.loads((tied / "config.json").read_text())["tie_word_embeddings"] is True
    assert "lm_head" not in {p.module for p in shared_parameters([Checkpoint.open(tied)])}


def test_an_untied_head_is_compared_with_the_embedding_of_a_tied_base(folders, tmp_path):
    untied = rewrite(
        folders / "qwen2",
        tmp_path / "untied",
        lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1},
        tie_word_embeddings=False,
    )
    base, trained = Checkpoint.open(folders / "qwen2"), Checkpoint.open(untied)
    for order in ([base, trained], [trained, base]):
        assert "lm_head.weight" in {p.name for p in shared_parameters(order)}
    assert torch.equal(base.read("lm_head.weight"), base.read("model.embed_tokens.weight"))
    assert torch.equal(trained.read("lm_head.weight"), base.read("model.embed_tokens.weight") + 1)


def test_rows_that_pad_a_vocabulary_are_left_out(folders, tmp_path):
    def padded(tensors):
        return {
            name: torch.cat([tensor, torch.zeros(8, tensor.shape[1])]) if tensor.shape == (24, 32) else tensor
            for name, tensor in tensors.items()
        }

    folder = rewrite(folders / "llama", tmp_path / "padded", padded, vocab_size=32)
    for order in ([folders / "llama", folder], [folder, folders / "llama"]):
        shapes = {p.name: p.shape for p in shared_parameters([Checkpoint.open(path) for path in order])}
        assert shapes["model.embed_tokens.weight"] == shapes["lm_head.weight"] == (24, 32)


def test_other_architectures_are_refused_by_name(folders, tmp_path):
    qwen, llama = Checkpoint.open(folders / "qwen3"), Checkpoint.open(folders / "llama")
    with pytest.raises(UserError, match=r"llama lacks model.layers.0.self_attn.k_norm.weight, .*not the same arch"):
        shared_parameters([qwen, llama])

    def narrower(tensors):
        return {
            name: x[:40] if x.shape == (48, 32) else x[:, :40].contiguous() if x.shape == (32, 48) else x
            for name, x in tensors.items()
        }

    other = Checkpoint.open(rewrite(folders / "llama", tmp_path / "narrow", narrower, intermediate_size=40))
    with pytest.raises(
        UserError,
        match=r"layers.\d.mlp.\w+_proj.weight is \((?:48, 32|32, 48)\) in .*llama and \((?:40, 32|32, 40)\) in .*narr",
    ):
        shared_parameters([llama, other])


def test_buffers_of_old_versions_are_no_parameters(folders, tmp_path):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    old = rewrite(folders / "llama", tmp_path / "old", lambda tensors: {**tensors, name: torch.ones(4)})
    shared_parameters([Checkpoint.open(folders / "llama"), Checkpoint.open(old)])


@pytest.mark.parametrize("manifest", ["state.json", "decision.json", "prediction.json"])
def test_what_a_run_keeps_is_a_checkpoint(folders, tmp_path, manifest):
    weights = load_file(folders / "llama/model.safetensors")
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match="is no folder with"):
        Checkpoint.open(tmp_path)
    (tmp_path / manifest).write_text("{}")
    kept = Checkpoint.open(tmp_path)
    shared = shared_parameters([Checkpoint.open(folders / "llama"), kept])
    assert {parameter.name for parameter in shared} >= {name for name in weights if name.endswith("proj.weight")}
    assert all(torch.equal(kept.read(parameter.name), weights[parameter.name]) for parameter in shared)


def test_what_is_no_checkpoint_is_refused_with_a_remedy(folders, tmp_path):
    with pytest.raises(UserError, match="is no folder with model.safetensors or"):
        Checkpoint.open(tmp_path / "nothing")
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"Pickled weights \(\*.bin\) are not read: save it as safetensors"):
        Checkpoint.open(tmp_path / "pickled")
    for name in ("one.gguf", "folder/one.gguf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"GGUF")
    for path in (tmp_path / "one.gguf", tmp_path / "folder"):
        with pytest.raises(
            UserError, match="is or holds a GGUF file, which is not read here. Take the model as safeten"
        ):
            Checkpoint.open(path)
    quantised = rewrite(folders / "llama", tmp_path / "int8", lambda t: {n: x.to(torch.int8) for n, x in t.items()})
    with pytest.raises(UserError, match="is stored as I8. Only F64, F32, F16 and BF16"):
        Checkpoint.open(quantised)
    torn = shutil.copytree(folders / "llama", tmp_path / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        Checkpoint.open(tmp_path / "torn")
    make_family("llama", 0).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    next((tmp_path / "sharded").glob("model-00002*")).unlink()
    with pytest.raises(UserError, match=r"sharded lacks model-00002.*which its index names"):
        Checkpoint.open(tmp_path / "sharded")
    (tmp_path / "sharded/model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="index.json is damaged"):
        Checkpoint.open(tmp_path / "sharded")


def test_the_fingerprint_follows_the_files(folders, tmp_path):
    copy = shutil.copytree(folders / "llama", tmp_path / "copy")
    before = Checkpoint.open(copy).fingerprint
    assert Checkpoint.open(copy).fingerprint == before
    save_file({n: x + 1 for n, x in load_file(copy / "model.safetensors").items()}, copy / "model.safetensors")
    assert Checkpoint.open(copy).fingerprint != before


@pytest.mark.parametrize("shape", [(), (5,), (1, 3), (2**13, 2**13), (3 * 2**12 + 1, 2**12)])
@pytest.mark.parametrize("whole", [True, False])
def test_blocks_cover_every_row_once(shape, whole):
    pieces = list(blocks(Parameter("x", shape, None, "other"), whole))
    if not shape:
        assert pieces == [slice(None)]
        return
    assert [row for piece in pieces for row in range(piece.start, piece.stop)] == list(range(shape[0]))
    size = torch.Size(shape[1:]).numel()
    assert whole or all((piece.stop - piece.start) * size <= BLOCK_ELEMENTS for piece in pieces)
    assert not whole or len(pieces) == 1
