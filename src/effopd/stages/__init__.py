"""The workflow's stages: each module is what one rule runs, from files to files."""
