"""Procedural scenes: pure functions of (random generator, size) that return an image and its labels or mask.

`home` has clean objects to pre-train on; `buildings`, `polyps` and `shadows` are domains that it does not prepare for.
"""

import zlib

import numpy as np

from .buildings import buildings
from .home import home
from .polyps import polyps
from .shadows import shadows

__all__ = ["buildings", "home", "polyps", "rng_for", "shadows"]


def rng_for(*key: object) -> np.random.Generator:
    """The generator that belongs to `key`: the same on every machine, from the crc32 of each part's `str`."""
    return np.random.default_rng([zlib.crc32(str(part).encode()) for part in key])
