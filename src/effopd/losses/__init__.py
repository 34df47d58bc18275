"""Divergences between students and teachers."""
