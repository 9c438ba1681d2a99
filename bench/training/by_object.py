"""What each prompt's mask covers: the class of every pixel, and the pixels that it shares with every object."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from bench.data.objects import LabelMap, Objects
from bench.model.transfer import Download, uploaded
from bench.model.upsampling import parts, resized
from bench.types import Sample

MOST_CLASSES = 256


@dataclass(frozen=True, eq=False)
class ObjectTruth:
    """Of an image whose objects are asked for one by one, in their order: their areas and classes (n,), the maps of labels (H, W) that
    they are in, and the image's class map (H, W), None without classes."""

    areas: np.ndarray
    classes: np.ndarray
    layers: Sequence[LabelMap]
    class_map: np.ndarray | None

    @classmethod
    def of(cls, sample: Sample, objects: Objects) -> Self | None:
        """None of a sample that does not state its objects."""
        if sample.objects is None and sample.labels is None:
            return None
        classes = np.ones(len(objects), np.int64) if objects.classes is None else objects.classes
        return cls(objects.areas, classes, objects.layers(), sample.class_map)

    @property
    def bytes(self) -> int:
        """Its memory."""
        return sum(array.nbytes for array in (*self.layers, self.areas, self.classes, self.class_map) if array is not None)


class Covered:
    """Filled run by run with an image's maps (k, h, w), in the order of their objects, and read when all are there.

    A pixel is of the class with the largest logit, of two that are equal the one with the lower id; of none, 0, where no logit is
    positive. Without objects an image's one map is of no class.
    """

    def __init__(self, truth: ObjectTruth, size: tuple[int, int], device: torch.device) -> None:
        self.truth, self.size = truth, size
        self.union = torch.zeros(size, dtype=torch.bool, device=device)
        self._largest = torch.zeros(size, device=device)
        self._class = torch.zeros(size, dtype=torch.uint8, device=device)
        self._layers = [uploaded(torch.from_numpy(layer), device).flatten().long() for layer in truth.layers]
        self._pixels: list[Tensor] = []
        self._seen = 0

    def add(self, low: Tensor) -> None:
        """Enters the next maps; those of full size are never held together."""
        for part in parts(low, self.size):
            full = resized(part, self.size)
            positive = full > 0
            self.union |= positive.any(0)
            for logits, number in zip(full, self.truth.classes[self._seen :].tolist(), strict=False):
                self._enter(logits, number)
            self._pixels.append(self._counted(positive.flatten(1)))
            self._seen += len(part)

    def _enter(self, logits: Tensor, number: int) -> None:
        wins = (logits > self._largest) | ((logits == self._largest) & (self._class > number))
        self._largest = torch.where(wins, logits, self._largest)
        self._class[wins] = number

    def _counted(self, positive: Tensor) -> Tensor:
        """The pixels of masks (k, HW), and those that each shares with every object, (k, 1 + n)."""
        count = 1 + len(self.truth.areas)
        at, pixels = positive.nonzero(as_tuple=True)
        found = torch.zeros(len(positive), count, dtype=torch.long, device=positive.device)
        for layer in self._layers:
            found += torch.bincount(at * count + layer[pixels], minlength=found.numel()).view_as(found)
        found[:, 0] = positive.sum(1)
        return found

    def download(self) -> "ArrivingCover":
        """What was found, on its way to the host."""
        classes = self._class if self.truth.class_map is not None else self._class[:0]
        return ArrivingCover(self.truth, Download(classes), Download(torch.cat(self._pixels)) if self._pixels else None)


@dataclass(frozen=True, eq=False)
class ArrivingCover:
    """A `Covered` on its way."""

    truth: ObjectTruth
    classes: Download
    pixels: Download | None

    def confusion(self) -> str | None:
        """As `ImageRow.confusion`."""
        if self.truth.class_map is None:
            return None
        pairs = self.truth.class_map.astype(np.int64) * MOST_CLASSES + self.classes.array()
        counts = np.bincount(pairs.ravel())
        return " ".join(f"{pair // MOST_CLASSES}:{pair % MOST_CLASSES}:{counts[pair]}" for pair in np.flatnonzero(counts))

    def instances(self, estimates: np.ndarray) -> str:
        """As `ImageRow.instances`; estimates: SAM's, (n,)."""
        truth, pixels = self.truth, self.pixels.array() if self.pixels else np.zeros((0, 1), np.int64)
        told = zip(truth.classes, truth.areas, pixels, estimates, strict=False)  # without objects there is one mask, of none
        return " ".join(_instance(*one) for one in told)


def _instance(category: int, area: int, pixels: np.ndarray, estimate: float) -> str:
    shared = "".join(f":{j}={pixels[j]}" for j in 1 + np.flatnonzero(pixels[1:]))
    return f"{category}:{area}:{pixels[0]}:{estimate:.9g}{shared}"
