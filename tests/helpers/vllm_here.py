"""Which tests need vLLM: left out if it is not installed, unless EFFOPD_REQUIRE_VLLM says that it must be."""

import importlib.util
import os

import pytest


def needs_vllm(group: str) -> list[pytest.MarkDecorator]:
    """Marks of tests that need vLLM; those of a group share a process, and so an engine's start."""
    missing = importlib.util.find_spec("vllm") is None and os.environ.get("EFFOPD_REQUIRE_VLLM") != "1"
    return [
        pytest.mark.vllm,
        pytest.mark.slow,
        pytest.mark.xdist_group(group),
        pytest.mark.skipif(missing, reason="vllm is not installed (make test-vllm)"),
    ]
