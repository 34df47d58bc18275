"""GGUF files of tiny models, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

from effopd.models.models import weights_of
from tiny_models import CHAT_TEMPLATE, make_family

pytest.importorskip("gguf")  # the environment of vLLM has none
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

MERGES = ["h e"]
TOKENS = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in MERGES)]
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def tiny_llama(seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A random two-layer Llama with a token a byte and one more."""
    return make_family("llama", seed, vocabulary=len(TOKENS), initializer_range=0.3, **settings)


def gguf_tensors(model: PreTrainedModel) -> dict[str, np.ndarray]:
    """A Llama's weights by their names in GGUF files, rows of queries and keys in llama.cpp's order."""
    config, tensors = model.config, {}
    for name, weight in weights_of(model).items():
        value = weight.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2], 0)
        if heads:
            halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        for own, other in NAMES.items():
            name = name.replace(own, other)
        tensors[name] = np.ascontiguousarray(value)
    return tensors


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tensors: Mapping[str, np.ndarray] | None = None,
    quantization: GGMLQuantizationType | None = None,
    **values: Any,
) -> Path:
    """Write a Llama with its tokenizer, matrices quantized if asked for; `values` are more keys, dots as `__`."""
    config, writer = model.config, GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for key, value in values.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(key.replace("__", "."), value)
    for name, value in (gguf_tensors(model) if tensors is None else tensors).items():
        if quantization is not None and value.ndim == 2:
            writer.add_tensor(name, quants.quantize(value, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
