"""A model's logits linearised in its parameters: products with J, J^T and A = E[J^T F J], without building them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from effopd.data.rollouts import PaddedBatch, Rollouts
from effopd.dynamics.local_theory import fisher_product
from effopd.losses.divergences import reverse_kl
from effopd.models.models import Weights


class LinearizedModel:
    """The logits z [M, V] at all completion tokens of some rollouts, as a function of the parameters theta [P].

    Parameters are one vector, in the model's order, tied ones once. All sums over contexts are means over M. Works in
    fixed batches, so that one batch's activations are held at a time.
    """

    def __init__(self, model: PreTrainedModel, rollouts: Rollouts, *, pad_id: int, batch_size: int) -> None:
        self.model = model.eval()
        self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self.origin = flat({name: parameter.detach() for name, parameter in model.named_parameters()})
        self.batches = [PaddedBatch.of(part, pad_id, model.device) for part in rollouts.batches(batch_size)]
        self.contexts = sum(int(batch.mask.sum()) for batch in self.batches)

    def logits(self, parameters: torch.Tensor) -> torch.Tensor:
        """z [M, V] at `parameters` [P], not only near the origin."""
        with torch.no_grad(), _differentiable():
            return torch.cat([self._logits(parameters, batch) for batch in self.batches])

    def reverse_kl(self, parameters: torch.Tensor, teacher_logits: torch.Tensor) -> float:
        """E[KL(p_theta || p*)] at `parameters`, exact over the vocabulary, in nats per token; teacher logits [M, V]."""
        return float(reverse_kl(self.logits(parameters), teacher_logits).double().mean())

    def jacobian_product(self, vector: torch.Tensor) -> torch.Tensor:
        """J v [M, V] at the origin, by forward-mode differentiation."""
        return torch.cat([self._forward_derivative(batch, vector)[1] for batch in self.batches])

    def transposed_product(self, cotangents: torch.Tensor) -> torch.Tensor:
        """E[J^T u] [P] of cotangents u [M, V]."""
        total = torch.zeros_like(self.origin)
        parts = cotangents.split([int(batch.mask.sum()) for batch in self.batches])
        for batch, part in zip(self.batches, parts, strict=True):
            total += self._pull_back(batch, part)
        return total / self.contexts

    def gauss_newton_product(self, vector: torch.Tensor) -> torch.Tensor:
        """A v = E[J^T F (J v)] [P], a batch at a time."""
        total = torch.zeros_like(self.origin)
        for batch in self.batches:
            logits, moved = self._forward_derivative(batch, vector)
            total += self._pull_back(batch, fisher_product(torch.softmax(logits, -1), moved))
        return total / self.contexts

    def descent_direction(self, teacher_logits: torch.Tensor) -> torch.Tensor:
        """b = E[J^T F r] [P], minus the gradient of the reverse KL at the origin; teacher logits [M, V]."""
        student = self.logits(self.origin)
        return self.transposed_product(fisher_product(torch.softmax(student, -1), teacher_logits - student))

    def _logits(self, parameters: torch.Tensor, batch: PaddedBatch) -> torch.Tensor:
        named = unflattened(parameters, self.shapes)
        output = functional_call(self.model, named, kwargs={"input_ids": batch.tokens[:, :-1], "use_cache": False})
        logits: torch.Tensor = output.logits[batch.mask]
        return logits

    def _forward_derivative(self, batch: PaddedBatch, vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with _differentiable():
            logits, moved = jvp(partial(self._logits, batch=batch), (self.origin,), (vector,))  # type: ignore[misc]
        return logits.detach(), moved.detach()

    def _pull_back(self, batch: PaddedBatch, cotangents: torch.Tensor) -> torch.Tensor:
        with _differentiable():
            _, pull = vjp(partial(self._logits, batch=batch), self.origin)  # type: ignore[misc]
            (pulled,) = pull(cotangents)
        gradient: torch.Tensor = pulled.detach()
        return gradient


def flat(weights: Weights) -> torch.Tensor:
    """Weights as one vector [P], in their order."""
    return torch.cat([tensor.reshape(-1) for tensor in weights.values()])


def unflattened(vector: torch.Tensor, shapes: dict[str, torch.Size]) -> Weights:
    """The parts of a vector [P] by name, as views."""
    parts = vector.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


@contextlib.contextmanager
def _differentiable() -> Iterator[None]:
    """Attention in plain operations: the fused kernels have no forward-mode derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
