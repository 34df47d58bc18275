"""Engines: what turns prompts into sampled completions (docs/engines.md)."""
