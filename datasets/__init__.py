"""The data sets, a file each."""

from bench import errors as errors  # `bench` before all else: it says what Ctrl-C does while modules load
