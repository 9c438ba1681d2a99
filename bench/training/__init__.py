"""The training loop, what it learns from, evaluation and the metric, and the processes that share a cell."""
