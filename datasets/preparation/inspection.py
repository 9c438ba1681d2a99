"""Looks at every image of a data set as a run would read it, and counts what is there."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.data.objects import object_count
from bench.errors import DataError
from bench.types import Dataset, ObjectRule, Sample, Split
from datasets.folder import Entry, Pair, fitted, read_pair

AHEAD = 64  # images in memory at once, at most


@dataclass(frozen=True)
class Inspection:
    """One image. fault: why it cannot be read, else empty; pixels (H, W) of the mask; fits: whether the image has its mask's size;
    values: how many of the mask's pixels have each grey value (256,), where there is such a mask; stated: whether the data set
    itself says which objects there are."""

    split: Split
    name: str
    fault: str = ""
    pixels: tuple[int, int] = (0, 0)
    fits: bool = True
    objects: int = 0
    foreground: int = 0
    values: NDArray[np.int64] | None = None
    stated: bool = False


def inspections(entries: Mapping[Split, Mapping[str, Entry]], rule: ObjectRule, on_step: Callable[[int], None]) -> Iterator[Inspection]:
    """A look at every entry, in the splits' order and by name; threads read ahead. tell: called after each."""
    wanted = [(split, name, entry) for split, of_split in entries.items() for name, entry in sorted(of_split.items())]
    cv2.setNumThreads(1)  # the images are read side by side already
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for start in range(0, len(wanted), AHEAD):
            for found in threads.map(lambda one: inspect_entry(one[0], one[1], one[2], rule), wanted[start : start + AHEAD]):
                yield found
                on_step(1)


def inspect_entry(split: Split, name: str, entry: Entry, rule: ObjectRule) -> Inspection:
    """One image, read past every cache."""
    try:
        sample, values, fits = _grey(name, entry) if isinstance(entry, Pair) else (entry.read(name), None, True)
    except DataError as error:
        return Inspection(split, name, str(error))
    pixels = (sample.mask.shape[0], sample.mask.shape[1])
    counts = object_count(sample, rule), int(np.count_nonzero(sample.mask))
    return Inspection(split, name, "", pixels, fits, *counts, values, sample.objects is not None)


def _grey(name: str, pair: Pair) -> tuple[Sample, NDArray[np.int64], bool]:
    image, grey = read_pair(pair)
    values = np.bincount(grey.ravel(), minlength=256)
    mask = (grey > pair.threshold).astype(np.uint8)
    return Sample(name, fitted(image, grey.shape, pair.mask), mask), values, image.shape[:2] == grey.shape


@dataclass(frozen=True)
class Drawn:
    """An entry of a data set that is not read from files."""

    dataset: Dataset
    split: Split

    def read(self, name: str) -> Sample:
        """The sample."""
        return self.dataset.load(self.split, name)

    def files(self) -> Mapping[str, Path]:
        """None."""
        return {}
