"""The weights of a variant, parameter by parameter, so that a whole model is never held but for the variant itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping

import torch

from effopd.dynamics.reconstruction import along, frobenius_norm, keep_bottom, keep_top, scale_towards, update
from effopd.dynamics.variants import Variant
from effopd.models.weight_files import Parameter

_PARTS = {
    "attention": re.compile(r"\.(self_attn|attn|attention)\."),
    "mlp": re.compile(r"\.(mlp|feed_forward|block_sparse_moe)\."),
    "layer": re.compile(""),
}
_REPLACED = {"embedding": ("embedding",), "embedding_and_head": ("embedding", "lm_head")}
Read = Callable[[int, Parameter], torch.Tensor]  # (step, 0 for the base; parameter) -> float32
Norm = Callable[[Parameter], float]


def variant_parameter(
    variant: Variant, parameter: Parameter, read: Read, *, final: int, teacher_norm: Norm | None
) -> torch.Tensor:
    """A parameter of a variant, float32.

    `final` is the last step that was kept. Where the leading part of a matrix's update is rescaled to the norm that it
    has in the teacher, `teacher_norm` says what that is; None: to its own.
    """
    if variant.analysis == "path":
        return read(variant.step, parameter)
    if variant.analysis in ("embeddings", "window"):
        return read(final if _as_trained(variant, parameter) else 0, parameter)
    base, trained = read(0, parameter), read(final, parameter)
    if variant.analysis == "reconstruction":
        return _reconstructed(variant, parameter, base, trained, teacher_norm)
    assert variant.amount is not None
    if variant.analysis == "equal_norm":
        return along(base, update(base, trained), variant.amount)
    start = update(base, read(variant.step, parameter))
    return along(base, scale_towards(start, update(base, trained), variant.amount))


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Names bitwise equal float32 weights: 32 hex digits."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].contiguous().numpy().data)
    return found.hexdigest()[:32]


def _as_trained(variant: Variant, parameter: Parameter) -> bool:
    """Whether a parameter is the trained one where embeddings are put back, or in a window; else it is the base's."""
    part = str(variant.part)
    if variant.analysis == "embeddings":
        return parameter.module not in _REPLACED[part]
    assert variant.first_layer is not None
    assert variant.last_layer is not None
    inside = parameter.layer is not None and variant.first_layer <= parameter.layer <= variant.last_layer
    return inside and _PARTS[part].search(parameter.name) is not None


def _reconstructed(
    variant: Variant, parameter: Parameter, base: torch.Tensor, trained: torch.Tensor, teacher_norm: Norm | None
) -> torch.Tensor:
    """Attention and MLP matrices with a part of their update, the leading one rescaled; other parameters as trained."""
    if not parameter.is_projection:
        return trained
    delta = update(base, trained)
    if not variant.amount:
        return base
    if variant.part == "bottom":
        return along(base, keep_bottom(delta, variant.amount))
    size = frobenius_norm(delta)
    if size == 0:
        return base
    return along(base, keep_top(delta, variant.amount, teacher_norm(parameter) if teacher_norm else size))
