"""Model folders damaged in every way that files, headers, indices and configurations allow.

A damage is a function that changes a folder in place. The folder holds a tiny Llama with its tokenizer, in one file
(`whole`) or in shards with their index (`sharded`).
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MATRIX = "model.layers.0.mlp.up_proj.weight"
NORM, HEAD, EMBEDDING = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"
Change = Callable[[Path], None]

# What reads weights: the folder in the role that the name says. `export` reads configuration and tokenizer alone.
READERS = ("load", "fetch", "analyze_base", "analyze_trained", "extrapolate_anchor", "extrapolate_current")
ALL = (*READERS, "export")


@dataclass(frozen=True)
class Damage:
    """A change of a folder, and which commands must refuse it (`refusing`) or do as if it were not there (`fine`).

    Commands in neither may do either, but never end otherwise or with other weights.
    """

    name: str
    change: Change
    sharded: bool = False
    refusing: tuple[str, ...] = ()
    fine: tuple[str, ...] = ()
    words: str = ""  # in the line of every refusal


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Replace the tensors of a whole folder."""

    def apply(folder: Path) -> None:
        save_file(change(load_file(folder / SINGLE)), folder / SINGLE, metadata={"format": "pt"})

    return apply


def entry(file: str, **changes: Any) -> Change:
    """Set keys of a JSON file; ... deletes them."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return apply


def text(file: str, content: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content) and None


def bytes_of(change: Callable[[bytes], bytes], file: str = SINGLE) -> Change:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes())) and None


def header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change a file's header, and nothing of the bytes behind it."""

    def apply(folder: Path) -> None:
        raw = (folder / SINGLE).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        changed = json.dumps(change(json.loads(raw[8 : 8 + length]))).encode()
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(changed)) + changed + raw[8 + length :])

    return apply


def _set(content: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    return content | {name: content[name] | changes}


def weight_map(change: Callable[[dict[str, Any]], Any]) -> Change:
    def apply(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] = change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return apply


def place(name: str, make: Callable[[Path], None]) -> Change:
    """Put something else in the place of a file or first shard."""

    def apply(folder: Path) -> None:
        path = folder / (first_shard(folder) if name == "shard" else name)
        kept = path.with_name("kept.bin")
        if path.exists():
            shutil.move(path, kept)
        make(path)

    return apply


def first_shard(folder: Path) -> str:
    return min(path.name for path in folder.glob("model-*.safetensors"))


def _to_outside(path: Path) -> None:
    """A link to the same content outside, as in the hub's cache, where every file is a link to a blob."""
    outside = path.parent.parent / "outside"
    shutil.move(path.with_name("kept.bin"), outside / "blob")
    path.symlink_to(outside / "blob")


def _shard_elsewhere(name: str) -> Change:
    """The index names a shard by a path, and the shard is really there."""

    def apply(folder: Path) -> None:
        shard = first_shard(folder)
        named = name.format(outside=folder.parent / "outside", shard=shard)
        target = folder / named
        (folder / "sub").mkdir()
        if not target.exists():
            shutil.copy(folder / shard, target)
        weight_map(lambda placed: {t: named if f == shard else f for t, f in placed.items()})(folder)

    return apply


def _with_surplus_shard(folder: Path) -> None:
    """A shard whose tensors, with other values, another one holds, too."""
    shard = first_shard(folder)
    copied = {name: tensor + 1 for name, tensor in load_file(folder / shard).items()}
    save_file(copied, folder / "model-extra.safetensors")
    extra = {"model.surplus.weight": torch.zeros(2)}
    save_file(copied | extra, folder / "model-extra.safetensors")
    weight_map(lambda placed: placed | {"model.surplus.weight": "model-extra.safetensors"})(folder)


def _both(folder: Path) -> None:
    """A whole file beside an index with its shards, of other weights."""
    merged: dict[str, torch.Tensor] = {}
    for shard in folder.glob("model-*.safetensors"):
        merged |= load_file(shard)
    save_file({name: tensor + 1 for name, tensor in merged.items()}, folder / SINGLE, metadata={"format": "pt"})


def _swap(placed: dict[str, str]) -> dict[str, str]:
    first, second = sorted(set(placed.values()))[:2]
    a = next(name for name, file in placed.items() if file == first)
    b = next(name for name, file in placed.items() if file == second)
    return placed | {a: second, b: first}


def _files() -> list[Damage]:
    """Bytes that are no safetensors file, and things that are no file."""
    cuts = {"empty": 0, "four_bytes": 4, "no_header": 8, "half_a_header": 200}
    broken: dict[str, Change] = {f"cut_{name}": bytes_of(lambda raw, n=n: raw[:n]) for name, n in cuts.items()}
    broken |= {
        "cut_last_byte": bytes_of(lambda raw: raw[:-1]),
        "cut_half": bytes_of(lambda raw: raw[: len(raw) // 2]),
        "byte_more": bytes_of(lambda raw: raw + b"\0"),
        "header_of_2_to_62": bytes_of(lambda raw: struct.pack("<Q", 2**62) + raw[8:]),
        "header_of_a_gigabyte": bytes_of(lambda raw: struct.pack("<Q", 2**30) + raw[8:]),
        "header_not_json": bytes_of(lambda raw: raw[:8] + b"\xff" + raw[9:]),
        "pickle": bytes_of(lambda raw: b"\x80\x04N."),
        "pointer_of_lfs": text(SINGLE, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        "header_list": header(lambda content: [content]),
        "header_empty": header(lambda content: {}),
        "header_overlap": header(lambda content: _set(content, NORM, data_offsets=[0, 32])),
        "header_beyond": header(lambda content: _set(content, NORM, data_offsets=[10**9, 10**9 + 32])),
        "header_negative": header(lambda content: _set(content, NORM, shape=[-8])),
        "header_dtype": header(lambda content: _set(content, NORM, dtype="F31")),
        "header_shape": header(lambda content: _set(content, NORM, shape=[2**40, 2**40])),
        "directory": place(SINGLE, Path.mkdir),
        "fifo": place(SINGLE, os.mkfifo),
        "loop": place(SINGLE, lambda path: path.symlink_to(path.name)),
        "dangling": place(SINGLE, lambda path: path.symlink_to("nowhere")),
        "device": place(SINGLE, lambda path: path.symlink_to("/dev/zero")),
        "absent": place(SINGLE, lambda path: None),
        "no_tensors": tensors(lambda _: {}),
    }
    return [
        *(Damage(name, change, refusing=READERS, fine=("export",)) for name, change in broken.items()),
        Damage("linked_blob", place(SINGLE, _to_outside), fine=ALL),
        Damage("adapter", text("adapter_config.json", b"{}"), refusing=READERS, fine=("export",), words="adapter"),
    ]


def _tensors() -> list[Damage]:
    """Tensors that are missing, unexpected, in other shapes or types."""
    found: dict[str, Change] = {
        f"without_{name}": tensors(lambda t, name=name: {n: x for n, x in t.items() if n != name})
        for name in (MATRIX, NORM, HEAD, EMBEDDING, "model.layers.0.input_layernorm.weight")
    }
    found |= {
        f"prefixed_{prefix}": tensors(lambda t, prefix=prefix: {prefix + n: x for n, x in t.items()})
        for prefix in ("_orig_mod.", "module.", "base_model.model.")
    }
    found |= {
        "surplus": tensors(lambda t: t | {"model.layers.0.mlp.surplus.weight": torch.zeros(3)}),
        "surplus_layer": tensors(lambda t: t | {n.replace("layers.0", "layers.1"): x.clone() for n, x in t.items()}),
        "renamed": tensors(lambda t: {n.replace("up_proj", "upp_roj"): x for n, x in t.items()}),
        "twice": tensors(lambda t: t | {"norm.weight": t[NORM] + 1}),
        "transposed": tensors(lambda t: t | {MATRIX: t[MATRIX].T.contiguous()}),
        "flat": tensors(lambda t: t | {MATRIX: t[MATRIX].flatten()}),
        "scalar": tensors(lambda t: t | {NORM: t[NORM][0].clone()}),
        "no_rows": tensors(lambda t: t | {MATRIX: t[MATRIX][:0]}),
        "padded_but_not_in_config": tensors(lambda t: t | {EMBEDDING: torch.zeros(264, 8)}),
    }
    refused = [Damage(name, change, refusing=READERS, fine=("export",)) for name, change in found.items()]
    for dtype in (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn):
        for which in (MATRIX, NORM):
            change = tensors(lambda t, d=dtype, w=which: t | {w: t[w].to(d)})
            name = f"{str(dtype).removeprefix('torch.')}_{which.split('.')[-2]}"
            refused.append(Damage(name, change, refusing=READERS, fine=("export",), words="is stored as"))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        change = tensors(lambda t, d=dtype: {n: x.to(d) for n, x in t.items()})
        refused.append(Damage(f"all_{dtype}", change, fine=("load", "fetch", "analyze_trained", "export")))
    mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    buffers = {
        "inv_freq": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)},
        "flags": {"model.layers.0.attention.bias": mask},
        "mask_of_bytes": {"model.layers.0.attn.bias": mask.to(torch.uint8)},
        "masked_bias": {"model.layers.0.attention.masked_bias": torch.tensor(-1e9)},
        "positions": {"model.position_ids": torch.arange(8)[None]},
        "counter": {"model.layers.0.counter": torch.tensor(3)},
    }
    for name, added in buffers.items():
        refused.append(Damage(f"buffer_{name}", tensors(lambda t, added=added: t | added), fine=ALL))
    for name, value in (("nan", torch.nan), ("inf", torch.inf)):
        change = tensors(lambda t, v=value: t | {MATRIX: t[MATRIX] * v})
        refusing = tuple(name for name in READERS if name not in ("load", "fetch"))
        refused.append(Damage(f"value_{name}", change, refusing=refusing, fine=("export",), words="finite"))
    return refused


def _indices() -> list[Damage]:
    """Indices that lie about their shards."""
    maps: dict[str, Callable[[dict[str, Any]], Any]] = {
        "swapped": _swap,
        "all_in_one": lambda placed: dict.fromkeys(placed, min(placed.values())),
        "without_a_tensor": lambda placed: {n: f for n, f in placed.items() if n != NORM},
        "with_a_tensor": lambda placed: placed | {"model.surplus.weight": min(placed.values())},
        "list": list,
        "none": lambda placed: None,
        "empty": lambda placed: {},
        "numbers": lambda placed: dict.fromkeys(placed, 1),
        "lists": lambda placed: {name: [file] for name, file in placed.items()},
    }
    for name in ("", ".", "..", "config.json", INDEX, "tokenizer.json", "a\0.safetensors", "\n.safetensors", "/",
                 "nothing.safetensors", ".safetensors", "../outside", "a\\b.safetensors", "x" * 5000 + ".safetensors"):  # fmt: skip
        maps[f"one_in_{name[:20]!r}"] = lambda placed, name=name: placed | {NORM: name}
    changes: dict[str, Change] = {f"map_{name}": weight_map(change) for name, change in maps.items()}
    paths = ("sub/{shard}", "./{shard}", "../outside/{shard}", "{outside}/{shard}", "sub/../{shard}")
    changes |= {f"shard_at_{path.format(outside='abs', shard='x')}": _shard_elsewhere(path) for path in paths}
    changes |= {
        "index_empty": text(INDEX, b""),
        "index_list": text(INDEX, b"[]"),
        "index_nan": entry(INDEX, total=float("nan")),
        "index_deep": text(INDEX, b'{"a":' * 100_000),
        "index_latin1": text(INDEX, b'{"weight_map": {"\xe9": "a"}}'),
        "index_no_metadata": entry(INDEX, metadata=...),
        "index_odd_metadata": entry(INDEX, metadata=[1]),
        "index_directory": place(INDEX, Path.mkdir),
        "index_loop": place(INDEX, lambda path: path.symlink_to(path.name)),
        "shard_absent": place("shard", lambda path: None),
        "shard_directory": place("shard", Path.mkdir),
        "shard_fifo": place("shard", os.mkfifo),
        "shard_loop": place("shard", lambda path: path.symlink_to(path.name)),
        "shard_empty": place("shard", Path.touch),
        "shard_surplus": _with_surplus_shard,
        "both": _both,
    }
    damages = [Damage(name, change, True, READERS, ("export",)) for name, change in changes.items()]
    return [*damages, Damage("linked_shard", place("shard", _to_outside), True, fine=ALL)]


def _bert_encoder(folder: Path) -> None:
    """Another model in the place of the Llama, which sees what follows."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertLMHeadModel(BertConfig(vocab_size=258, **sizes)).save_pretrained(folder)


def _configs() -> list[Damage]:
    """Configurations that are not JSON, no configuration, or not that of these weights."""
    path = "config.json"
    files: dict[str, bytes] = {
        "empty": b"", "list": b"[]", "null": b"null", "number": b"3", "text": b'"llama"', "not_json": b"{'a': 1}",
        "deep": b'{"a":' * 100_000, "latin1": b'{"model_type": "ll\xe9ma"}', "utf16": '{"a": 1}'.encode("utf-16"),
        "bom": b"\xef\xbb\xbf{}", "nan": b'{"model_type": "llama", "vocab_size": NaN}',
    }  # fmt: skip
    damages = [Damage(f"config_{name}", text(path, content), refusing=ALL) for name, content in files.items()]
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim", "vocab_size")  # fmt: skip
    odd: tuple[Any, ...] = (-1, 0, 3, 1.5, "8", [8], {}, True, 10**12, float("inf"), "x")
    for key in sizes:
        damages += [Damage(f"config_{key}_{value!r}", entry(path, **{key: value})) for value in (*odd, None, ...)]
    others: dict[str, tuple[Any, ...]] = {
        "dtype": ("float99", 3, [], "int8", "../x"),
        "architectures": ([], None, "x", ["../x"], ["GPT2LMHeadModel"], ["nn"], [3], ["AutoModel"], ["__file__"]),
        "rope_parameters": ([], "x", {"rope_type": "of-tomorrow"}, 3, None),
        "hidden_act": ("of-tomorrow", 3, None),
        "rms_norm_eps": ("x", None, -1, [1]),
        "max_position_embeddings": (-1, "x", 10**12),
        "auto_map": ({"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}, "x", [1]),
        "attn_implementation": ("of-tomorrow",),
        "pad_token_id": (-1, 10**9, "x"),
        "eos_token_id": ("x", [], [[1]]),
        "initializer_range": ("x", -1),
        "id2label": (3, ["a"]),
        "tie_word_embeddings": ("x", 3),
        "transformers_version": (3, "x"),
        "_name_or_path": ("../outside", "/etc"),
        "layer_types": ("x", ["a"], 3),
    }
    for key, values in others.items():
        damages += [Damage(f"config_{key}_{value!r}", entry(path, **{key: value})) for value in values]
    rope = {"rope_type": "default", "rope_theta": "x"}
    stated: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
        ({"rope_theta": "x", "rope_parameters": ...}, ALL, "config.json: `rope_theta` is 'x', not a number above 0"),
        ({"rope_theta": 0}, ALL, "config.json: `rope_theta` is 0, not a number above 0. Correct it"),
        ({"rope_parameters": rope}, ALL, "config.json: `rope_parameters.rope_theta` is 'x', not a number"),
        ({"max_position_embeddings": 0}, ALL, "config.json: `max_position_embeddings` is 0, not a whole number above"),
        ({"torch_dtype": "float8_e4m3fn", "dtype": ...}, ALL, "`torch_dtype` is 'float8_e4m3fn', not one of float32"),
        ({"dtype": "float8"}, ALL, "config.json: `dtype` is 'float8', not one of float32"),
        ({"vocab_size": 100}, ("fetch",), "config.json: `vocab_size` is 100, and the tokenizer's ids go up to 257"),
        ({"architectures": ["BertModel"]}, ("load", "fetch"), "config.json: `architectures` is ['BertModel'], which"),
        ({"architectures": ["LlamaForSequenceClassification"]}, ("load", "fetch"), "such as to LlamaForCausalLM"),
    ]
    deep: dict[str, Any] = {"num_hidden_layers": 10_000_000}
    stated += [({"text_config": deep}, ALL, "config.json: `text_config.num_hidden_layers` is 10000000, which no model")]
    harmless: list[dict[str, Any]] = [{"transformers_weights": None}, {"task_specific_params": {"a": {"vocab_size": "x"}}},
                {"num_experts": 16384}, {"torch_dtype": "half", "dtype": ...}]  # fmt: skip
    damages += [Damage(f"harmless_{changes!r}", entry(path, **changes), fine=ALL) for changes in harmless]
    damages += [Damage(f"stated_{changes!r}", entry(path, **changes), refusing=refusing, words=words)
                for changes, refusing, words in stated]  # fmt: skip
    quantized = ({"quant_method": "gptq", "bits": 4}, {"quant_method": "of-tomorrow"}, {"load_in_8bit": True}, [1], "x")
    damages += [
        Damage(f"quantized_{value!r}", entry(path, quantization_config=value), refusing=ALL, words="quantized")
        for value in quantized
    ]
    kinds = ("of-tomorrow", "", 3, None, [], {}, "../x", ...)
    unknown = ("load", "fetch", "export")  # analyze and extrapolate go by the names of the tensors
    damages += [Damage(f"kind_{value!r}", entry(path, model_type=value), refusing=unknown) for value in kinds]
    damages += [
        Damage(f"kind_{value}", entry(path, model_type=value)) for value in ("gpt2", "bert", "t5", "qwen2_vl", "mamba")
    ]
    more_layers = entry(path, num_hidden_layers=2)
    damages += [
        Damage("config_of_more_layers", more_layers, refusing=READERS, words="layers.1."),
        Damage("config_ties_another_head", entry(path, tie_word_embeddings=True), refusing=READERS, words="tie"),
        Damage("bert_encoder", _bert_encoder, refusing=("load", "fetch"), words="`is_decoder` is not true: an encoder"),
        Damage("config_names_weights", entry(path, transformers_weights="other.safetensors"), refusing=ALL),
        Damage("config_absent", place(path, lambda path: None), refusing=unknown),
        Damage("config_directory", place(path, Path.mkdir), refusing=unknown),
        Damage("config_fifo", place(path, os.mkfifo), refusing=unknown),
        Damage("config_loop", place(path, lambda path: path.symlink_to(path.name)), refusing=unknown),
        Damage("config_linked", place(path, _to_outside), fine=ALL),
    ]
    return damages


def _beside() -> list[Damage]:
    """Other files of a model folder."""
    weights_only = tuple(name for name in READERS if name != "fetch")
    found = []
    for file in ("tokenizer.json", "tokenizer_config.json"):
        contents = {"empty": b"", "list": b"[]", "latin1": b"\xe9", "deep": b'{"a":' * 100_000, "null": b"null"}
        found += [
            Damage(f"{file}_{name}", text(file, content), fine=weights_only) for name, content in contents.items()
        ]
        found += [
            Damage(f"{file}_{make.__name__}", place(file, make), fine=weights_only) for make in (Path.mkdir, os.mkfifo)
        ]
    odd = {"generation_config.json": b"[", "manifest.json": b"[]", ".hidden.json": b"{}", "evil.py": b"raise SystemExit(3)",
           "model.safetensors.index.json.bak": b"", "\udcff.json": b"{}", "special_tokens_map.json": b"[]"}  # fmt: skip
    found += [Damage(f"beside_{name!a}", text(name, content)) for name, content in odd.items()]
    manifest = json.dumps({"spec": {"model": {"trust_remote_code": True}}}).encode()
    found.append(Damage("forged_manifest", text("manifest.json", manifest), fine=READERS))
    return found


DAMAGES = [*_files(), *_tensors(), *_indices(), *_configs(), *_beside()]
assert len({damage.name for damage in DAMAGES}) == len(DAMAGES)
