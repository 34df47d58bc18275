"""Models, their weights and their files."""
