"""The weights that interventions evaluate (paper section 3, items 1, 3, 4, 6 and 8), parameter by parameter.

A variant is a function of one parameter's values in the base and in kept states, so that a whole model is never held
but for the variant itself.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from effopd.dynamics.checkpoints import Parameter
from effopd.dynamics.reconstruction import along, frobenius_norm, keep_bottom, keep_top, scale_towards, update

BASE, FINAL = "base", "final"
_PARTS = {
    "attention": re.compile(r"\.(self_attn|attn|attention)\."),
    "mlp": re.compile(r"\.(mlp|feed_forward|block_sparse_moe)\."),
    "layer": re.compile(""),
}
Read = Callable[[int, Parameter], torch.Tensor]  # (step, 0 for the base; parameter) -> float32
Norm = Callable[[Parameter], float]
COLUMNS = ("part", "amount", "layer", "first_layer", "last_layer")


@dataclass(frozen=True)
class Variant:
    """One set of weights; `build` makes a parameter of it from what `Read` gives. The columns say what was varied."""

    analysis: str
    name: str
    step: int
    build: Callable[[Read, Parameter], torch.Tensor]
    part: str | None = None
    amount: float | None = None
    layer: int | None = None
    first_layer: int | None = None
    last_layer: int | None = None

    def row(self) -> dict[str, Any]:
        """The variant's columns in interventions.parquet."""
        columns = {name: getattr(self, name) for name in COLUMNS}
        return {"analysis": self.analysis, "variant": self.name, "step": self.step, **columns}


def variants(
    settings: Mapping[str, Any], steps: Sequence[int], parameters: Sequence[Parameter], teacher_norm: Norm
) -> list[Variant]:
    """All variants that `settings` (the section `dynamics`) asks for of a base and its states after `steps`.

    The first two are the base and the final state, with which the others are compared. `teacher_norm` gives the norm of
    a parameter's update in the teacher.
    """
    chosen, final = settings["interventions"], max(steps)
    found = [Variant("path", BASE, 0, _kept(0)), Variant("path", FINAL, final, _kept(final))]
    if "path" in chosen:
        found += [Variant("path", f"path {step}", step, _kept(step)) for step in steps if step != final]
    if "equal_norm" in chosen:
        found += [
            Variant("equal_norm", f"equal_norm {a:g}", final, _along(final, a), amount=a)
            for a in settings["equal_norm"]["fractions"]
        ]
    if "embeddings" in chosen:
        found += _embeddings(final, parameters)
    if "window" in chosen:
        found += _windows(settings["window"], final, parameters)
    if "reconstruction" in chosen:
        found += _reconstructions(settings["reconstruction"], final, teacher_norm)
    if "norm_scaling" in chosen:
        early = early_step(steps, settings["norm_scaling"]["progress"])
        found += [
            Variant("norm_scaling", f"norm_scaling {beta:g}", early, _scaled(early, final, beta), amount=beta)
            for beta in settings["norm_scaling"]["betas"]
        ]
    return found


def early_step(steps: Sequence[int], progress: float) -> int:
    """The kept step nearest, in ratio, to a share of the last one; the earlier of two that are as near."""
    return min(steps, key=lambda step: abs(math.log(step / (progress * max(steps)))))


def windows(layers: int, width: float, stride: int) -> Iterator[tuple[int, int, int]]:
    """(centre, first, last) of windows of layers that reach floor(width * layers / 2) to both sides of their centre.

    As in the paper they are cut off at the bottom and the top, where they are therefore narrower.
    """
    reach = math.floor(width * layers / 2)
    for centre in range(0, layers, stride):
        yield centre, max(0, centre - reach), min(layers - 1, centre + reach)


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Names bitwise equal float32 weights: 32 hex digits."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].contiguous().numpy().data)
    return found.hexdigest()[:32]


def _kept(step: int) -> Callable[[Read, Parameter], torch.Tensor]:
    return lambda read, parameter: read(step, parameter)


def _along(step: int, amount: float) -> Callable[[Read, Parameter], torch.Tensor]:
    def build(read: Read, parameter: Parameter) -> torch.Tensor:
        base = read(0, parameter)
        return along(base, update(base, read(step, parameter)), amount)

    return build


def _only(step: int, trained: Callable[[Parameter], bool]) -> Callable[[Read, Parameter], torch.Tensor]:
    """The state's values of the parameters that `trained` names, the base's of the others."""
    return lambda read, parameter: read(step if trained(parameter) else 0, parameter)


def _embeddings(step: int, parameters: Sequence[Parameter]) -> Iterator[Variant]:
    """The base's embeddings put back, and its head with them where that is another matrix."""
    replaced: dict[str, tuple[str, ...]] = {"embedding": ("embedding",)}
    if any(parameter.module == "lm_head" for parameter in parameters):
        replaced["embedding_and_head"] = ("embedding", "lm_head")
    for part, modules in replaced.items():
        build = _only(step, lambda parameter, modules=modules: parameter.module not in modules)  # type: ignore[misc]
        yield Variant("embeddings", f"base {part.replace('_', ' ')}", step, build, part=part)


def _windows(settings: Mapping[str, Any], step: int, parameters: Sequence[Parameter]) -> Iterator[Variant]:
    layers = 1 + max((parameter.layer for parameter in parameters if parameter.layer is not None), default=-1)
    for part in settings["parts"]:
        for centre, first, last in windows(layers, settings["width"], settings["stride"]):
            name = f"window {part} {centre}"
            build = _only(step, _inside(part, first, last))
            yield Variant("window", name, step, build, part, layer=centre, first_layer=first, last_layer=last)


def _inside(part: str, first: int, last: int) -> Callable[[Parameter], bool]:
    def inside(parameter: Parameter) -> bool:
        in_window = parameter.layer is not None and first <= parameter.layer <= last
        return in_window and _PARTS[part].search(parameter.name) is not None

    return inside


def _reconstructions(settings: Mapping[str, Any], step: int, teacher_norm: Norm) -> Iterator[Variant]:
    norm = teacher_norm if settings["norm"] == "teacher" else None
    for percent in settings["top"]:
        build = _top(step, percent / 100, norm)
        name = f"reconstruction top {percent:g} %"
        yield Variant("reconstruction", name, step, build, "top", percent / 100)
    for percent in settings["bottom"]:
        build = _bottom(step, percent / 100)
        name = f"reconstruction bottom {percent:g} %"
        yield Variant("reconstruction", name, step, build, "bottom", percent / 100)


def _top(step: int, share: float, norm: Norm | None) -> Callable[[Read, Parameter], torch.Tensor]:
    """Attention and MLP matrices with the leading part of their update, rescaled; other parameters as trained."""

    def build(read: Read, parameter: Parameter) -> torch.Tensor:
        if not parameter.is_projection:
            return read(step, parameter)
        base = read(0, parameter)
        delta = update(base, read(step, parameter))
        size = frobenius_norm(delta)
        if share == 0 or size == 0:
            return base
        return along(base, keep_top(delta, share, norm(parameter) if norm else size))

    return build


def _bottom(step: int, share: float) -> Callable[[Read, Parameter], torch.Tensor]:
    def build(read: Read, parameter: Parameter) -> torch.Tensor:
        if not parameter.is_projection:
            return read(step, parameter)
        base = read(0, parameter)
        if share == 0:
            return base
        return along(base, keep_bottom(update(base, read(step, parameter)), share))

    return build


def _scaled(early: int, final: int, beta: float) -> Callable[[Read, Parameter], torch.Tensor]:
    def build(read: Read, parameter: Parameter) -> torch.Tensor:
        base = read(0, parameter)
        start, end = update(base, read(early, parameter)), update(base, read(final, parameter))
        return along(base, scale_towards(start, end, beta))

    return build
