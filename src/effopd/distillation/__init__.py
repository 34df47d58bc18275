"""On-policy distillation: objectives, updates, and extrapolation after each step."""
