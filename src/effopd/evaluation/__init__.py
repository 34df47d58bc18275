"""Measuring models, and comparing runs."""
