"""What vLLM's workers do to logits before they sample: named to vLLM, which imports it there."""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from effopd.engines.vllm_engine import UNKNOWN_TOKENS


class KnownTokensOnly(LogitsProcessor):  # type: ignore[misc]  # of a package that need not be here
    """Gives the tokens that the tokenizer does not know the probability 0, in what is sampled and in its log-probs."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.unknown = torch.tensor(vllm_config.additional_config[UNKNOWN_TOKENS], device=device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [requests, vocabulary], changed in place."""
        return logits.index_fill_(-1, self.unknown, -torch.inf)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """All requests are treated alike."""
