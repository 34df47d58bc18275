"""What a job is told: its canonical JSON as frozen dataclasses.

Keys have the names and meanings of the configuration (config/README.md); `schema.yaml` has checked their values.
"""
