"""Training with DeepSpeed: trainer, master weights, LoRA, checkpoints."""
