"""Configuration: reading, schema and checks."""
