"""Engines: what turns prompts into sampled completions (docs/engines.md).

Light to import (no torch): the plan asks which modules are in use.
"""

from __future__ import annotations

# Engines by the name that the configuration gives them: their module, and the class in it.
ENGINES = {
    "transformers": ("effopd.engines.transformers_engine", "TransformersEngine"),
    "vllm": ("effopd.engines.vllm_engine", "VllmEngine"),
}


def engine_module(name: str) -> str:
    """The module that an engine of this name lives in."""
    return ENGINES[name][0]
