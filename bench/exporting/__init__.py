"""Tuned models as files for other tools."""
