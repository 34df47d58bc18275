"""Settings of LoRA."""

from __future__ import annotations

LORA = {"rank": 3, "alpha": 6.0, "parameters": "attention_mlp"}
