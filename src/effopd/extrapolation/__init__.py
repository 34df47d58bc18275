"""Weight extrapolation as pure functions: when, along what, how far, and who decides.

Knows nothing of Snakemake, DeepSpeed or distillation, so that it serves the workflow and other people's trainers alike.
"""
