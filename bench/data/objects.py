"""A mask's objects: its connected components that are larger than a data set's rule asks, their areas and tight boxes."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.types import ObjectRule, Sample

Masks = NDArray[np.bool_]
Integers = NDArray[np.int64]


def object_masks(mask: NDArray[Any], rule: ObjectRule) -> Masks:
    """The objects of `mask` (H, W), 0/1 or bool, as (n, H, W) bool: n = 0 where there is none.

    They come in the order in which reading the image row by row meets them, whatever order OpenCV labels them in.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=rule.connectivity)
    areas = stats[1:, cv2.CC_STAT_AREA].astype(np.int64)  # label 0 is the background
    kept = 1 + np.flatnonzero(areas > rule.limit(areas))
    objects: Masks = labels[None] == kept[:, None, None]  # (n, H, W)
    order = np.argsort(_first_pixels(objects))
    return objects[order]


def sample_objects(sample: Sample, rule: ObjectRule) -> Masks:
    """The objects of a sample as (n, H, W) bool: those that it states, in its order, else its mask's components; either way only
    the ones that are larger than the rule asks."""
    if sample.objects is None:
        return object_masks(sample.mask, rule)
    areas = object_areas(sample.objects)
    kept: Masks = sample.objects[areas > rule.limit(areas)]
    return kept


def label_objects(labels: NDArray[Any], are_ids: bool, rule: ObjectRule) -> Masks:
    """The objects of a label map (H, W), 0 for the background, as (n, H, W) bool, by label: each id's pixels wherever they lie, or
    the connected parts of each class that are larger than the rule's `min_area`."""
    parts = ObjectRule(rule.connectivity, rule.min_area)  # what is relative to the largest object is not known before all are
    found = [(labels == label)[None] if are_ids else object_masks(labels == label, parts) for label in np.unique(labels) if label]
    none: Masks = np.zeros((0, *labels.shape), bool)
    return np.concatenate([none, *found])


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


def _first_pixels(objects: Masks) -> Integers:
    """The flat index of each object's first pixel (n,); no two objects share it."""
    count, height, width = objects.shape
    first: Integers = objects.reshape(count, height * width).argmax(axis=1)
    return first
