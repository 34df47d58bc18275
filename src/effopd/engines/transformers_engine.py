"""Rollouts with a plain decoding loop over a transformers model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from effopd.common.randomness import uniforms
from effopd.data.rollouts import Rollouts
from effopd.engines.decoders import prefill
from effopd.models.lm_head import KnownTokens, tokens_of
from effopd.models.models import load_weights_into, special_ids
from effopd.specs.engines import Sampling

# Finished sequences leave the batch once those left are at most this share of it: a copy of the cache against wasted
# rows.
COMPACT_BELOW = 0.85


class TransformersEngine:
    """Samples from a causal language model, `batch_size` prompts at a time.

    Each token is drawn by inverting the cumulative distribution at one uniform number, so two models that agree draw
    the same token from the same seed (common random numbers). The n-th fixed batch of prompts gives the same rollouts,
    bit for bit on a CPU, whatever the other batches are. Of `tokens` alone are any drawn (default: those of the model).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_id: int,
        pad_id: int,
        batch_size: int,
        tokens: KnownTokens | None = None,
    ) -> None:
        self.model, self.tokens = model, tokens or tokens_of(model)
        self.eos_id, self.pad_id, self.batch_size = eos_id, pad_id, batch_size

    @staticmethod
    def of(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, batch_size: int, context: int, dtype: str
    ) -> TransformersEngine:
        """An engine of the tokenizer's tokens, ends and padding, in the model's own type, of any `context`."""
        eos_id, pad_id = special_ids(tokenizer)
        tokens = KnownTokens.of(tokenizer)
        return TransformersEngine(model, eos_id=eos_id, pad_id=pad_id, batch_size=batch_size, tokens=tokens)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        load_weights_into(self.model, weights)

    def sync_weights(self) -> None:
        """It generates with the model itself."""

    def close(self) -> None:
        """Nothing is held beside the model."""

    def generate(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Rollouts:
        self.model.eval()
        batches = [slice(i, i + self.batch_size) for i in range(0, len(prompts), self.batch_size)]
        return Rollouts.concatenate([self._generate_batch(prompts[b], seeds[b], sampling) for b in batches])

    @torch.inference_mode()
    def _generate_batch(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> Rollouts:
        device = self.model.device
        size, width = len(prompts), max(len(p) for p in prompts)
        tokens = torch.full((size, width), self.pad_id)
        mask = torch.zeros((size, width), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        tokens, mask = tokens.to(device), mask.to(device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        draws = torch.from_numpy(uniforms(seeds, sampling.max_new_tokens)).to(device)

        alive = torch.arange(size, device=device)  # rows of the batch that the decoder still holds
        done = torch.zeros(size, dtype=torch.bool, device=device)  # of the rows alive: finished
        sampled = torch.full((size, sampling.max_new_tokens), self.pad_id, device=device)
        logprobs = torch.zeros((size, sampling.max_new_tokens), device=device)
        logits, decoder = prefill(self.model, tokens, mask, positions, sampling.max_new_tokens)
        last = positions[:, -1]
        for step in range(sampling.max_new_tokens):
            chosen, chosen_logprobs = _choose(self.tokens(logits), draws[alive, step], sampling.temperature)
            sampled[alive, step] = chosen.masked_fill(done, self.pad_id)
            logprobs[alive, step] = chosen_logprobs
            done = done | (chosen == self.eos_id)
            kept = (~done).sum().item()
            if kept == 0 or step + 1 == sampling.max_new_tokens:
                break
            last = last + 1
            if kept <= COMPACT_BELOW * len(alive):
                keep = (~done).nonzero().squeeze(1)
                decoder.keep(keep)
                alive, done, chosen, last = (x[keep] for x in (alive, done, chosen, last))
            logits = decoder.step(chosen, last)
        return self._collect(prompts, sampled.cpu().numpy(), logprobs.float().cpu().numpy())

    def _collect(self, prompts: Sequence[Sequence[int]], sampled: np.ndarray, logprobs: np.ndarray) -> Rollouts:
        ended = sampled == self.eos_id
        finished = ended.any(1)
        lengths = np.where(finished, ended.argmax(1) + 1, sampled.shape[1])
        return Rollouts(
            prompts=[list(p) for p in prompts],
            completions=[row[:n].tolist() for row, n in zip(sampled, lengths, strict=True)],
            logprobs=[row[:n].copy() for row, n in zip(logprobs, lengths, strict=True)],
            finished=finished.tolist(),
        )


def _choose(logits: torch.Tensor, draws: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample a token a row by inverse CDF: logits [B, V], draws float64 [B] -> tokens [B], their log-probs [B].

    Greedy decoding (temperature 0) reports log-probs at temperature 1.
    """
    scaled = torch.log_softmax(logits.float() / (temperature or 1.0), -1)
    if temperature == 0:
        chosen = scaled.argmax(-1)
    else:
        cumulative = scaled.double().exp().cumsum(-1)
        target = (draws * cumulative[:, -1]).unsqueeze(1)
        chosen = torch.searchsorted(cumulative, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)
    return chosen, scaled.gather(1, chosen.unsqueeze(1)).squeeze(1)
