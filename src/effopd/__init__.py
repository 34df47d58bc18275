"""effopd: accelerate and understand on-policy distillation (EffOPD, arXiv 2605.11739)."""

__version__ = "0.1.0"
