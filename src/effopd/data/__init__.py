"""Prompts and rollouts, their shards and batches."""
