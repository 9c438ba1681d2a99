"""Prompts and images of `bench.predict`."""
