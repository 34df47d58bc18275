"""Extrapolation in other people's trainers."""
