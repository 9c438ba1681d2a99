"""Which processor this machine has."""

import platform
from functools import cache
from pathlib import Path


@cache
def cpu_model() -> str | None:
    """The processor's name; None where the system does not say it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or None
