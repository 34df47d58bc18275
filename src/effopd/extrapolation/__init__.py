"""Weight extrapolation: when, along what, how far, and who decides; driver.py does all of it at a trigger.

Knows nothing of Snakemake, DeepSpeed or distillation, so that it serves the workflow and other people's trainers alike.
"""
