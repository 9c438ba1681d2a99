"""Tuning: the same budget of trials for every method, chosen on held-out training images."""
