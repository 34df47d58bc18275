"""A task, an objective and a gate for effopd."""
