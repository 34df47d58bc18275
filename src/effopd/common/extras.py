"""Which optional extra of the package brings what, and the one line that is said if a command lacks it."""

from __future__ import annotations

# By extra, the modules imported here that the core does without (`[project.optional-dependencies]`).
EXTRAS = {
    "workflow": (
        "datasets", "deepspeed", "huggingface_hub", "jinja2", "math_verify", "matplotlib", "pandas", "pydantic",
        "requests", "snakemake", "snakemake_interface_common", "snakemake_interface_logger_plugins", "sympy",
        "tenacity", "yaml",
    ),
    "vllm": ("vllm",),
    "trl": ("accelerate", "trl"),
    "gguf": ("accelerate", "gguf"),  # last, since commands miss accelerate for it alone
    "reasoning_gym": ("reasoning_gym",),
}  # fmt: skip
_EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules}


def missing_extra(error: ModuleNotFoundError, command: str) -> str | None:
    """What to install so that `command` finds the module that it missed; None if no extra brings it."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRA_OF:
        return None
    extra = _EXTRA_OF[package]
    return (
        f"`{command}` needs {package}, which is not installed here. It comes with the extra `{extra}`: "
        f"pip install 'effopd[{extra}]'"
    )
