"""Pixels and objects of files, and the fingerprints of data sets; free of torch."""
