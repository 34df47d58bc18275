"""What the transformers engine decodes with: the model's own forward pass, or for small models a lean one."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, PreTrainedModel

LEAN_FAMILIES = ("llama", "qwen2", "qwen3")
PLAIN_MODULES = ("torch.nn.modules.", "transformers.")
# Above this, matrix products take the time of a step and the lean decoder's copies of weights memory.
LEAN_PARAMETERS = 20_000_000


class Decoder(Protocol):
    """Logits of the next tokens of B sequences, which it holds in a cache."""

    def step(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Append a token to each sequence: tokens, positions int64 [B] -> logits of the next [B, V]."""

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone: int64 [fewer than B]."""


def prefill(
    model: PreTrainedModel, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, new_tokens: int
) -> tuple[torch.Tensor, Decoder]:
    """Read prompts, padded on the left: the logits of the first new tokens [B, V], and a decoder for what follows.

    tokens, mask (0 at padding) and positions are int64 [B, T]; room is made for `new_tokens` more.
    """
    cache = DynamicCache(config=model.config)
    logits = _forward(model, cache, tokens, mask, positions)
    if fits_lean_decoder(model):
        return logits, LeanDecoder(model, cache, mask, new_tokens)
    return logits, ModelDecoder(model, cache, mask)


def _forward(
    model: PreTrainedModel, cache: DynamicCache, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    logits: torch.Tensor = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits


class ModelDecoder:
    """The forward pass of any causal language model of transformers."""

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, mask: torch.Tensor) -> None:
        self.model, self.cache, self.mask = model, cache, mask

    def step(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        return _forward(self.model, self.cache, tokens.unsqueeze(1), self.mask, positions.unsqueeze(1))

    def keep(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.mask = self.mask[rows]


def fits_lean_decoder(model: Any) -> bool:
    """Whether a model is one that LeanDecoder computes alike: a small, plain float32 one of a family it knows.

    Hooks, adapters and partitioned or quantized weights are for the model's own forward pass, and so is whatever other
    packages put around or into a model (PEFT, torch.compile), which may look like what is inside.
    """
    if not all(type(module).__module__.startswith(PLAIN_MODULES) for module in model.modules()):
        return False
    config = model.config
    if config.model_type not in LEAN_FAMILIES or any(kind != "full_attention" for kind in _layer_types(config)):
        return False
    parameters = list(model.parameters())
    if sum(p.numel() for p in parameters) > LEAN_PARAMETERS or any(
        p.dtype != torch.float32 or hasattr(p, "ds_id") for p in parameters
    ):
        return False
    # DeepSpeed's hooks on the whole model do not count: training jobs have them, jobs that only generate do not
    if any(
        m._forward_hooks or m._forward_pre_hooks or hasattr(m, "_hf_hook") for m in model.modules() if m is not model
    ):
        return False
    projections = [module for name, module in model.named_modules() if name.endswith(("_proj", "lm_head"))]
    return model.model.rotary_emb.rope_type == "default" and all(type(module) is nn.Linear for module in projections)


def _layer_types(config: Any) -> list[str]:
    return list(getattr(config, "layer_types", None) or [])


class _Layer:
    """A layer's weights, those that are multiplied with the same vector put together."""

    def __init__(self, layer: Any, heads: int, kv_heads: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.attention_norm, self.mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = torch.cat([p.weight for p in projections])
        self.qkv_bias = None if projections[0].bias is None else torch.cat([p.bias for p in projections])
        self.out, self.down, self.act = attention.o_proj, mlp.down_proj, mlp.act_fn
        self.gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        self.gate_up_bias = None if mlp.gate_proj.bias is None else torch.cat([mlp.gate_proj.bias, mlp.up_proj.bias])
        self.scaling: float = attention.scaling
        self.qk_norm = None
        if hasattr(attention, "q_norm"):  # one weight a row of the query and key heads
            weights = [attention.q_norm.weight.expand(heads, -1), attention.k_norm.weight.expand(kv_heads, -1)]
            self.qk_norm = torch.cat(weights)
            self.qk_norm_epsilon: float = attention.q_norm.variance_epsilon


class LeanDecoder:
    """Single steps of Llama-shaped models without the overhead of transformers' modules, masks and growing caches.

    A third of the time of a step of the embedded model (docs/benchmarks.md). Its log-probs are the model's own but for
    the order of floating-point sums.
    """

    def __init__(self, model: Any, filled: DynamicCache, mask: torch.Tensor, new_tokens: int) -> None:
        config, body, cache = model.config, model.model, _held(filled)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.layers = [_Layer(layer, self.heads, self.kv_heads) for layer in body.layers]
        self.embedding, self.norm, self.head = body.embed_tokens.weight, body.norm, model.lm_head
        size, self.length = mask.shape
        room = self.length + new_tokens
        first = cache[0][0]
        self.width = first.shape[-1]
        # keys and values of all layers: [layers, 2, B, kv_heads, room, width]
        self.cache = first.new_empty(len(self.layers), 2, size, self.kv_heads, room, self.width)
        for layer, (keys, values) in zip(self.cache, cache, strict=True):
            layer[0, :, :, : self.length], layer[1, :, :, : self.length] = keys, values
        self.bias = torch.zeros(size, self.kv_heads, 1, room, device=mask.device)  # -inf at the prompts' padding
        self.bias[..., : self.length].masked_fill_((mask == 0)[:, None, None], -torch.inf)
        cosine, sine = body.rotary_emb(first, torch.arange(room, device=mask.device)[None])
        half = self.width // 2
        self.cosine = cosine[0]
        self.sine = torch.cat([-sine[0, :, :half], sine[0, :, half:]], 1)  # turns the halves' swap into a rotation

    def step(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        size, heads, groups = len(tokens), self.heads + self.kv_heads, self.heads // self.kv_heads
        now, self.length = self.length, self.length + 1
        half = self.width // 2
        cosine, sine = self.cosine[positions].unsqueeze(1), self.sine[positions].unsqueeze(1)
        bias = self.bias.view(-1, 1, self.bias.shape[-1])[..., : self.length].expand(-1, groups, -1)
        hidden = self.embedding[tokens]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            normed = _rms_norm(hidden, layer.attention_norm.weight, layer.attention_norm.variance_epsilon)
            qkv = F.linear(normed, layer.qkv, layer.qkv_bias).view(size, -1, self.width)
            query_key = qkv[:, :heads]
            if layer.qk_norm is not None:
                query_key = _rms_norm(query_key, layer.qk_norm, layer.qk_norm_epsilon)
            swapped = torch.cat([query_key[..., half:], query_key[..., :half]], -1)
            query_key = torch.addcmul(query_key * cosine, swapped, sine)
            keys[:, :, now], values[:, :, now] = query_key[:, self.heads :], qkv[:, heads:]
            query = query_key[:, : self.heads].reshape(size * self.kv_heads, groups, self.width)
            seen_keys, seen_values = (x.view(-1, x.shape[-2], self.width)[:, : self.length] for x in (keys, values))
            weights = torch.baddbmm(bias, query, seen_keys.transpose(1, 2), alpha=layer.scaling).softmax(-1)
            hidden = hidden + layer.out(torch.bmm(weights, seen_values).view(size, -1))
            normed = _rms_norm(hidden, layer.mlp_norm.weight, layer.mlp_norm.variance_epsilon)
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            hidden = hidden + layer.down(layer.act(gate) * up)
        logits: torch.Tensor = self.head(_rms_norm(hidden, self.norm.weight, self.norm.variance_epsilon))
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        self.cache, self.bias = self.cache[:, :, rows], self.bias[rows]


def _held(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of each layer, [B, kv_heads, T, width]."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True).add_(epsilon)) * weight
