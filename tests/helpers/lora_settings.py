"""Settings of LoRA."""

from __future__ import annotations

from effopd.specs.updates import LoraSettings

LORA = LoraSettings(rank=3, alpha=6.0, parameters="attention_mlp")
