"""The logits that predict completion tokens, a few positions at a time where the vocabulary is large; no gradients.

Where the logits of a batch would have more than LOGITS_AT_ONCE entries, only the hidden states are kept, and the head
turns a few positions at a time into logits: [positions, vocabulary] never exists as a whole. Whether and how is decided
by the batch's shape alone, so that a fixed batch gives the same numbers wherever it is computed.

Shapes: M completion tokens of a batch; V vocabulary entries; H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.common.errors import ArtifactError
from effopd.data.rollouts import PaddedBatch
from effopd.models.models import without_weights
from effopd.models.weight_files import Checkpoint

LOGITS_AT_ONCE = 2**24  # 64 MiB in float32

NEVER = -1e9  # a logit whose probability is 0 in any precision, and finite: 0 * -inf would be NaN

Logits = Callable[[slice], torch.Tensor]  # of M positions: the logits [m, V] of those in the slice


@dataclass(frozen=True)
class KnownTokens:
    """The token ids that a tokenizer knows. A model may have rows for more of them, to pad its embedding."""

    size: int  # the largest id, and 1
    holes: tuple[int, ...] = ()  # smaller ids that it does not know

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerFast) -> KnownTokens:
        ids = set(tokenizer.get_vocab().values())
        size = 1 + max(ids)
        return KnownTokens(size, tuple(sorted(set(range(size)) - ids)))

    def unknown(self, rows: int) -> list[int]:
        """The ids that it does not know, of a model with so many rows."""
        return [*(number for number in self.holes if number < rows), *range(self.size, rows)]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits without rows that pad [..., V] -> [..., at most size]; NEVER at the holes."""
        logits = logits[..., : self.size]
        if not self.holes:
            return logits
        holes = [number for number in self.holes if number < logits.shape[-1]]
        return logits.index_fill(-1, torch.tensor(holes, device=logits.device), NEVER)


def restricted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The model as a policy that says nothing but what its tokenizer knows, in whatever is made of its logits here."""
    restrict(model, KnownTokens.of(tokenizer))
    return model


def restrict(model: Any, tokens: KnownTokens) -> None:
    """Let these tokens be all that a model may say."""
    model.known_tokens = tokens


def tokens_of(model: PreTrainedModel) -> KnownTokens:
    """The tokens that a model may say: all of its rows if it is not `restricted`."""
    known: KnownTokens = getattr(model, "known_tokens", KnownTokens(model.config.get_text_config().vocab_size))
    return known


@dataclass(frozen=True)
class Head:
    """What turns last hidden states into logits: a linear map, and with some models (Gemma 2) a soft cap behind it."""

    weight: torch.Tensor  # [V, H]
    bias: torch.Tensor | None  # [V]
    cap: float | None  # logits become cap * tanh(logits / cap)
    tokens: KnownTokens  # of which alone there are logits

    @staticmethod
    def of(model: PreTrainedModel) -> Head:
        """The head of a model, sharing its memory. Raises ArtifactError if the model has none of this form."""
        linear, config = model.get_output_embeddings(), model.config.get_text_config()
        scales = ("logits_scaling", "logit_scale", "output_multiplier")  # of Granite, Cohere and others
        scaled = [key for key in scales if getattr(config, key, 1) not in (1, None)]
        if not isinstance(linear, torch.nn.Linear) or scaled:
            what = f"scales its logits (`{scaled[0]}`)" if scaled else "has no linear head"
            raise ArtifactError(
                f"{type(model).__name__} {what}, so that its logits cannot be made from its last hidden states. Choose "
                "another support than `full`, and a smaller batch_size: batch_size x tokens x vocabulary "
                f"({config.vocab_size}) must be at most {LOGITS_AT_ONCE}."
            )
        bias = None if linear.bias is None else linear.bias.detach()
        return Head(linear.weight.detach(), bias, getattr(config, "final_logit_softcapping", None), tokens_of(model))

    @staticmethod
    def of_folder(folder: Path, tokens: KnownTokens, device: torch.device) -> Head:
        """The head of a model folder in float32, which alone is read of it. Raises ArtifactError as `of` does."""
        form, checkpoint = Head.of(without_weights(folder)), Checkpoint.open(folder)

        def read(name: str) -> torch.Tensor:
            if checkpoint.locate(name) is None:
                raise ArtifactError(f"{folder} holds no {name}. Choose another support than `full`.")
            return checkpoint.read(name).to(device, torch.float32)

        return Head(read("lm_head.weight"), None if form.bias is None else read("lm_head.bias"), form.cap, tokens)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states [m, H] -> logits [m, V]."""
        rows = slice(self.tokens.size)
        bias = None if self.bias is None else self.bias[rows]
        return self.tokens(capped(torch.nn.functional.linear(states, self.weight[rows], bias), self.cap))


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Logits of any shape, softly limited to plus or minus `cap` if there is one."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def vocabulary_of(model: PreTrainedModel) -> int:
    """The number of logits at a position."""
    return min(int(model.config.get_text_config().vocab_size), tokens_of(model).size)


def position_chunks(positions: int, vocabulary: int, at_once: int | None = None) -> Iterator[slice]:
    """The positions in chunks of at most `at_once` logits (LOGITS_AT_ONCE)."""
    size = max(1, (at_once or LOGITS_AT_ONCE) // vocabulary)
    for start in range(0, positions, size):
        yield slice(start, min(start + size, positions))


def fits_at_once(batch: PaddedBatch, vocabulary: int) -> bool:
    """Whether the logits of all of a batch's positions, prompts and padding included, are few enough."""
    return batch.mask.numel() * vocabulary <= LOGITS_AT_ONCE


@torch.inference_mode()
def completion_states(model: PreTrainedModel, batch: PaddedBatch) -> torch.Tensor:
    """The last hidden states that predict the batch's completion tokens: [M, H], in the model's dtype."""
    states: torch.Tensor = model.base_model(input_ids=batch.tokens[:, :-1], use_cache=False).last_hidden_state
    return states[batch.mask]


@torch.inference_mode()
def completion_logits(model: PreTrainedModel, batch: PaddedBatch) -> Logits:
    """The logits that predict the batch's completion tokens, for one chunk after the other.

    Raises ArtifactError if the batch needs chunks and the model has no plain head.
    """
    if fits_at_once(batch, vocabulary_of(model)):
        logits = tokens_of(model)(model(input_ids=batch.tokens[:, :-1], use_cache=False).logits[batch.mask])
        return lambda rows: logits[rows]
    return logits_of(Head.of(model), completion_states(model, batch))


def logits_of(head: Head, states: torch.Tensor) -> Logits:
    """The logits of hidden states [M, H], without gradients.

    Slices are best asked for in order: they are served from a chunk, which is let go with its last one.
    """
    size = max(1, LOGITS_AT_ONCE // len(head.weight))
    nothing = slice(0, 0), torch.empty(0)
    held = nothing

    @torch.no_grad()
    def logits(rows: slice) -> torch.Tensor:
        nonlocal held
        if not held[0].start <= rows.start < rows.stop <= held[0].stop:
            chunk = slice(rows.start, max(rows.stop, min((rows.start // size + 1) * size, len(states))))
            held = chunk, head(states[chunk].to(head.weight.device))
        chunk, values = held
        if rows.stop == chunk.stop:
            held = nothing
        return values[rows.start - chunk.start : rows.stop - chunk.start]

    return logits
