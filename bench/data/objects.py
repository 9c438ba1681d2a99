"""A mask's objects: its connected components that are larger than a data set's rule asks, their areas, tight boxes and masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.types import ObjectRule, Sample

Masks = NDArray[np.bool_]
Integers = NDArray[np.int64]
LabelMap = NDArray[np.integer[Any]]
Window = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True, eq=False)
class Objects:
    """The n objects of an image of a shape (H, W). Masks are made when they are asked for, so that time and memory stay linear in the
    image's pixels however many objects there are.

    areas: (n,) in pixels; boxes: (n, 4) XYXY in pixels, all four coordinates inclusive. cut: the part of an object's mask that lies in
    a window, told by the object's number in `numbers` (n,). overlap: whether two of them may share a pixel. classes: (n,) class ids,
    where the data set has classes.
    """

    shape: tuple[int, int]
    numbers: Integers
    areas: Integers
    boxes: Integers
    cut: Callable[[int, Window], Masks]
    overlap: bool = False
    classes: Integers | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, chosen: Any) -> "Objects":
        """Some of them, as an index of an array (n,) chooses, in that order."""
        classes = None if self.classes is None else self.classes[chosen]
        return replace(self, numbers=self.numbers[chosen], areas=self.areas[chosen], boxes=self.boxes[chosen], classes=classes)

    def window(self, i: int) -> Window:
        """The rows and columns of object i's box."""
        x0, y0, x1, y1 = self.boxes[i].tolist()
        return slice(y0, y1 + 1), slice(x0, x1 + 1)

    def crop(self, i: int) -> Masks:
        """Object i's mask within its window."""
        return self.cut(int(self.numbers[i]), self.window(i))

    def masks(self) -> Masks:
        """All masks together, (n, H, W)."""
        found: Masks = np.zeros((len(self), *self.shape), bool)
        for i, mask in enumerate(found):
            mask[self.window(i)] = self.crop(i)
        return found

    def label_map(self) -> LabelMap:
        """(H, W): i + 1 where object i is, 0 where none is; in uint8 where that is enough. Only of objects that do not overlap."""
        found: LabelMap = np.zeros(self.shape, np.uint8 if len(self) < 256 else np.int32)
        for i in range(len(self)):
            found[self.window(i)][self.crop(i)] = i + 1
        return found

    def layers(self) -> list[LabelMap]:
        """The masks in as few maps of labels (H, W), i + 1 where object i is, as putting each where it overlaps none needs."""
        found = [] if self.overlap else [self.label_map()]
        for i in range(len(self) if self.overlap else 0):
            window, crop = self.window(i), self.crop(i)
            free = next((layer for layer in found if not layer[window][crop].any()), None)
            if free is None:
                found.append(free := np.zeros(self.shape, np.int32))
            free[window][crop] = i + 1
        return found

    def united(self) -> "Objects":
        """All of them as one."""
        return stacked_objects(np.any([layer > 0 for layer in self.layers()], axis=0)[None])


def mask_objects(mask: NDArray[Any], rule: ObjectRule) -> Objects:
    """The objects of `mask` (H, W), 0/1 or bool.

    They come in the order in which reading the image row by row meets them, whatever order OpenCV labels them in.
    """
    binary = mask.astype(np.uint8, copy=False)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=rule.connectivity)
    areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
    areas[0] = 0  # label 0 is the background
    numbers = np.flatnonzero(areas > rule.limit(areas))
    numbers = numbers[np.argsort(_first_pixels(labels, len(areas))[numbers])]
    x0, y0, width, height = stats[numbers, :4].astype(np.int64).T
    boxes = np.stack([x0, y0, x0 + width - 1, y0 + height - 1], axis=1)
    return Objects(labels.shape, numbers, areas[numbers], boxes, lambda number, at: labels[at] == number)


def labelled_objects(labels: LabelMap) -> Objects:
    """The objects of a label map (H, W): object i is where it is i + 1, which may be nowhere."""
    areas = np.bincount(labels.ravel(), minlength=1)[1:]
    boxes = [(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in windows(labels)]
    return Objects(
        labels.shape, 1 + np.arange(len(areas)), areas, np.array(boxes, np.int64).reshape(-1, 4), lambda number, at: labels[at] == number
    )


def stacked_objects(masks: Masks) -> Objects:
    """The objects whose masks (n, H, W) are given; some may be empty, or overlap."""
    boxes = tight_boxes(masks)
    return Objects(masks.shape[1:], np.arange(len(masks)), object_areas(masks), boxes, lambda i, at: masks[i][at], overlap=True)


def sample_objects(sample: Sample, rule: ObjectRule) -> Objects:
    """The objects of a sample: those that it states, in its order, else its mask's components; either way only the ones that are larger
    than the rule asks."""
    if sample.objects is None and sample.labels is None:
        return mask_objects(sample.mask, rule)
    stated = labelled_objects(sample.labels) if sample.labels is not None else stacked_objects(np.asarray(sample.objects))
    stated = replace(stated, classes=None if sample.classes is None else np.asarray(sample.classes, np.int64))
    return stated[stated.areas > rule.limit(stated.areas)]


def label_map(values: NDArray[Any], are_ids: bool, rule: ObjectRule) -> LabelMap:
    """The objects of a map of values (H, W), 0 for the background, numbered from 1 by value, as int32: each id's pixels wherever they
    lie, or the connected parts of each class that are larger than the rule's `min_area`."""
    present = np.unique(values)
    present = present[present != 0]
    ids = np.where(values == 0, 0, 1 + np.searchsorted(present, values)).astype(np.int32)
    return ids if are_ids else class_objects(ids, rule)[0]


def class_objects(class_map: LabelMap, rule: ObjectRule) -> tuple[LabelMap, Integers]:
    """The objects of a map of classes (H, W), 0 for the background: each connected part of a class that is larger than the rule's
    `min_area`. Their labels (H, W) int32, from 1, class by class, and the class of each (n,)."""
    rule = ObjectRule(rule.connectivity, rule.min_area)  # what is relative to the largest object is not known before all are
    found, classes = np.zeros(class_map.shape, np.int32), list[int]()
    for number, window in enumerate(windows(class_map), 1):
        parts = mask_objects(class_map[window] == number, rule)
        for i in range(len(parts)):
            classes.append(number)
            found[window][parts.window(i)][parts.crop(i)] = len(classes)
    return found, np.array(classes, np.int64)


def class_map_of(masks: Masks, classes: Sequence[int]) -> LabelMap:
    """The class of every pixel, (H, W) uint8, from the masks (n, H, W) of objects of these classes: where some overlap, that of the
    smallest, the earlier one of two that are equal."""
    found: LabelMap = np.zeros(masks.shape[1:], np.uint8)
    for i in np.argsort(object_areas(masks), kind="stable")[::-1]:
        found[masks[i]] = classes[i]
    return found


def windows(labels: LabelMap) -> list[Window]:
    """The rows and columns that the numbers 1, 2, … take in a label map (H, W); one pixel for a number that is nowhere."""
    from scipy.ndimage import find_objects  # here: planning a grid must not wait for it

    return [found or (slice(0, 1), slice(0, 1)) for found in find_objects(labels)]


def object_areas(objects: Masks) -> Integers:
    """The areas (n,) in pixels of `objects` (n, H, W)."""
    areas: Integers = np.count_nonzero(objects, axis=(1, 2)).astype(np.int64)
    return areas


def tight_boxes(objects: Masks) -> Integers:
    """The boxes (n, 4) XYXY in pixels, all four coordinates inclusive, of `objects` (n, H, W), none of them empty."""
    if not len(objects):
        return np.zeros((0, 4), np.int64)
    x0, x1 = _span(np.any(objects, axis=1))
    y0, y1 = _span(np.any(objects, axis=2))
    return np.stack([x0, y0, x1, y1], axis=1)  # (n, 4)


def _span(used: Masks) -> tuple[Integers, Integers]:
    """The first and the last used index of each row of `used` (n, length)."""
    return used.argmax(axis=1), used.shape[1] - 1 - used[:, ::-1].argmax(axis=1)


def _first_pixels(labels: NDArray[Any], count: int) -> Integers:
    """The flat index of the first pixel of each label (count,) of a map (H, W)."""
    flat = labels.ravel()
    starts = np.concatenate([[0], 1 + np.flatnonzero(flat[1:] != flat[:-1])])  # of the runs of one label
    first = np.zeros(count, np.int64)
    first[flat[starts[::-1]]] = starts[::-1]  # of a label's runs the first one is written last, and stays
    return first
