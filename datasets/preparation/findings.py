"""What is worth saying of a data set's images, as problems and notes of one sentence each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.data.manifest import Manifest
from bench.types import Split
from datasets.folder import Expected, FolderDataset, Survey
from datasets.preparation.inspection import Inspection

MIDDLE = 127  # between black and white: where a mask that once was binary would be cut
SPLITS = ("train", "val", "test")
Inspected = Mapping[Split, Sequence[Inspection]]


@dataclass(frozen=True)
class Finding:
    """A sentence; a problem makes the check fail, a note does not."""

    text: str
    is_problem: bool = True


def note(text: str) -> Finding:
    """What is no problem, and should be known."""
    return Finding(text, is_problem=False)


def of_archive(cls: type[FolderDataset], data: Path, survey: Survey, seen: Inspected) -> Iterator[Finding]:
    """The number and the size of the images against the official archive's; of a generated stand-in neither is asked for."""
    if cls.is_generated(data):
        yield note("A generated stand-in: it need not have the official archive's number and size of images, and its cells are marked.")
        return
    for split, expected in cls.expected.items():
        if split in survey.entries:
            yield from _counts(split, len(survey.entries[split]), survey.foreign.get(split, 0), expected)
    for look in (look for of_split in seen.values() for look in of_split if cls.pixels not in (None, look.pixels)):
        here, there = (f"{width}×{height}" for height, width in (look.pixels, cls.pixels or (0, 0)))
        yield Finding(f"The {look.split} image {look.name} has {here} pixels; the official ones have {there}.")


def _counts(split: str, images: int, foreign: int, expected: Expected) -> Iterator[Finding]:
    if abs(images - expected.images) > expected.tolerance:
        yield Finding(f"The {split} split has {images:,} images; the official archive has {expected.images:,}.")
    elif images != expected.images:
        yield note(f"The {split} split has {images:,} images, not {expected.images:,}: {expected.why}.")
    if foreign != expected.foreign:
        where = f"The {split} folder has {foreign:,} images that are not part of the data set"
        yield Finding(f"{where}; the official archive has {expected.foreign:,} of them.")
    elif foreign:
        yield note(f"{foreign:,} images of the {split} folder are not part of the data set, and are passed over.")


def of_masks(split: str, seen: Sequence[Inspection], threshold: int) -> Iterator[Finding]:
    """What the masks' values and sizes say."""
    values = sum((look.values for look in seen if look.values is not None), np.zeros(256, np.int64))
    if seen and not any(look.foreground for look in seen):
        brightest = f"; their brightest value is {np.flatnonzero(values).max()}, and > {threshold} is foreground" if values.any() else ""
        yield Finding(f"No mask of the {split} split has any foreground{brightest}.")
    other = [look for look in seen if not look.fits]
    if other:
        yield note(f"{split}: {_images(len(other))} not the mask's size and are transposed or resized to it, such as {other[0].name}.")
    mixed = [look for look in seen if look.values is not None and np.count_nonzero(look.values) > 2]
    if mixed:
        yield note(
            f"{split}: {len(mixed):,} of {len(seen):,} masks are not binary, with the values {ranges(values)}; {_cut(values, threshold)}."
        )


def _cut(values: NDArray[np.int64], threshold: int) -> str:
    """What the threshold makes of the values between it and the middle."""
    low, high = sorted((threshold, MIDDLE))
    between, bright = int(values[low + 1 : high + 1].sum()), int(values[MIDDLE + 1 :].sum())
    does, otherwise = ("leaves out", "would keep") if threshold > MIDDLE else ("takes in", "would not")
    return f"> {threshold} {does} {between:,} pixels that > {MIDDLE} {otherwise}, {100 * between / max(1, bright):.2f} % of that foreground"


def ranges(counts: NDArray[np.int64]) -> str:
    """The values that occur, as people write them: 0–7, 248–255."""
    runs: list[list[int]] = []
    for value in map(int, np.flatnonzero(counts)):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def of_contents(manifest: Manifest, paths: Mapping[str, Path]) -> Iterator[Finding]:
    """What changed without a new date, and images that are in two splits under different names."""
    for name in manifest.changed:
        yield Finding(f"The content of {paths[name]} changed, though its size and date did not: its disk may be failing.")
    first: dict[str, str] = {}
    split_of = {name: name.partition("/")[0] for name in manifest.files if name.endswith("/image")}
    images = sorted(split_of, key=lambda name: (SPLITS.index(split_of[name]), name))  # it is test images that must not be in train
    twice = [name for name in images if first.setdefault(manifest.files[name].sha256, split_of[name]) != split_of[name]]
    if twice:
        yield note(f"{_images(len(twice))} the same content as one of another split, such as {paths[twice[0]]}.")


def _images(count: int) -> str:
    return "1 image has" if count == 1 else f"{count:,} images have"
