"""Looks at every image of a data set as a run would read it, and counts what is there."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from bench.data.image_files import Values, orientation
from bench.errors import DataError
from bench.types import Dataset, ObjectRule, Sample, Split
from datasets.folder import Entry, Pair

AHEAD = 64  # images in memory at once, at most


@dataclass(frozen=True)
class Inspection:
    """One image. fault: why it cannot be read, else empty; pixels (H, W) of the mask; fits: whether the image has its mask's size;
    turned: whether an orientation tag turned it upright; values: how many of the mask's pixels have each value, where there is a mask
    whose values say foreground alone; stated: whether the data set itself says which objects there are, of which `blank` have no pixel."""

    split: Split
    name: str
    fault: str = ""
    pixels: tuple[int, int] = (0, 0)
    fits: bool = True
    turned: bool = False
    objects: int = 0
    foreground: int = 0
    values: Mapping[int, int] | None = None
    stated: bool = False
    blank: int = 0


def inspections(entries: Mapping[Split, Mapping[str, Entry]], rule: ObjectRule, on_step: Callable[[int], None]) -> Iterator[Inspection]:
    """A look at every entry, in the splits' order and by name; threads read ahead. on_step: called after each."""
    wanted = [(split, name, entry) for split, of_split in entries.items() for name, entry in sorted(of_split.items())]
    cv2.setNumThreads(1)  # the images are read side by side already
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for start in range(0, len(wanted), AHEAD):
            for found in threads.map(lambda one: inspect_entry(one[0], one[1], one[2], rule), wanted[start : start + AHEAD]):
                yield found
                on_step(1)


def inspect_entry(split: Split, name: str, entry: Entry, rule: ObjectRule) -> Inspection:
    """One image, read past every cache."""
    values, fits = None, True
    try:
        if isinstance(entry, Pair):
            image, mask = entry.pixels()
            sample, fits = entry.sample(name, image, mask), image.shape[:2] == mask.shape
            values = value_counts(mask) if entry.labels is None else None
        else:
            sample = entry.read(name)
    except DataError as error:
        return Inspection(split, name, str(error))
    pixels = (sample.mask.shape[0], sample.mask.shape[1])
    counts = rule.count(sample), int(np.count_nonzero(sample.mask))
    turned = "image" in entry.files() and orientation(entry.files()["image"]) > 1
    blank = 0 if sample.objects is None else int(np.count_nonzero(~sample.objects.any(axis=(1, 2))))
    stated = sample.objects is not None or sample.labels is not None
    return Inspection(split, name, "", pixels, fits, turned, *counts, values, stated, blank)


def value_counts(values: Values) -> dict[int, int]:
    """How often each value occurs; fractions count as the next whole number, so that what is above 0 stays so."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return {value: int(counts[value]) for value in map(int, np.flatnonzero(counts))}
    found = np.unique(np.ceil(values), return_counts=True)
    return {int(value): int(count) for value, count in zip(*found, strict=True)}


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
