"""Findings in words, tables and figures."""
