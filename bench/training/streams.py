"""Where the random numbers of a training sample come from: our own generator, or those of the reference's loader workers.

Both answer the same questions; each has its own order of drawing, which follows from what is asked and in which order.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.data.objects import Objects


class FreshStream:
    """One NumPy generator, which nothing else draws from."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def coin(self) -> bool:
        """True half the time."""
        return bool(self.rng.random() < 0.5)

    def crop(self, height: int, width: int, area_min: float) -> tuple[slice, slice]:
        """Rows and columns of a crop of area share U(area_min, 1) at the image's own aspect ratio, at a uniform position."""
        share = np.sqrt(self.rng.uniform(area_min, 1.0))
        rows, columns = (max(1, round(side * share)) for side in (height, width))
        top, left = self.rng.integers(0, height - rows + 1), self.rng.integers(0, width - columns + 1)
        return slice(top, top + rows), slice(left, left + columns)

    def kind_and_objects(self, kinds: Sequence[str], objects: Objects, most: int | None) -> tuple[str, Objects]:
        """One of the kinds of prompts, and the n objects themselves or, of more than `most`, so many of them."""
        if most is not None and len(objects) > most:
            objects = objects[np.sort(self.rng.choice(len(objects), most, replace=False))]
        return str(self.rng.choice(kinds)), objects

    def pixel(self, area: int) -> int:
        """One of the pixels of an object, counted in row-major order."""
        return int(self.rng.integers(area))

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers, the first dimension counting objects."""
        return torch.from_numpy(self.rng.standard_normal(shape, dtype=np.float32))

    def moves(self, *shape: int) -> np.ndarray:
        """Uniform numbers from -1 to 1."""
        return self.rng.uniform(-1, 1, shape)


class ReferenceStream:
    """The three generators of one of the reference's loader workers, as it seeds them at the start of every epoch: Python's, NumPy's
    legacy one and torch's on the CPU. Draws what the reference draws, number for number."""

    def __init__(self, seed: int) -> None:
        self.python, self.numpy = random.Random(seed), np.random.RandomState(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def coin(self) -> bool:
        """True half the time."""
        return self.python.random() < 0.5

    def crop(self, height: int, width: int, area_min: float) -> tuple[slice, slice]:
        """As `FreshStream.crop`; a share whose sides round to nothing is drawn again."""
        self.python.random()  # against the probability of cropping, which is 1
        aspect, rows, columns = width / height, 0, 0
        while not (0 < rows <= height and 0 < columns <= width):
            area = self.python.uniform(area_min, 1.0) * height * width
            rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        top, left = self.python.randint(0, height - rows), self.python.randint(0, width - columns)
        return slice(top, top + rows), slice(left, left + columns)

    def kind_and_objects(self, kinds: Sequence[str], objects: Objects, most: int | None) -> tuple[str, Objects]:
        """As `FreshStream.kind_and_objects`, but the kind comes first, and chosen objects stay in the order they were drawn in."""
        kind = self.python.choice(kinds)
        if most is not None and len(objects) > most:
            objects = objects[self.numpy.permutation(len(objects))[:most]]
        return kind, objects

    def pixel(self, area: int) -> int:
        """One of the pixels of an object, counted in row-major order."""
        self.python.randint(1, 1)  # how many points, which takes a number of bits that varies
        return int(self.numpy.permutation(area)[0])

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers, drawn object by object."""
        return torch.cat([torch.randn(1, *shape[1:], generator=self.torch) for _ in range(shape[0])])

    def moves(self, *shape: int) -> np.ndarray:
        """Uniform numbers from -1 to 1; the reference moves no box."""
        return self.numpy.uniform(-1, 1, shape)


Stream = FreshStream | ReferenceStream
