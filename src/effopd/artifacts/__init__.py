"""Artifacts on disk: manifests, fingerprints, locks, folders."""
