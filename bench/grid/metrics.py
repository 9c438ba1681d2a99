"""The metrics, all from integers that a cell keeps of each test image, so that stored cells can be scored by any of them.

The first is the foreground IoU of one confusion matrix pooled over all test pixels, which the paper calls mIoU.

It is not the mean of per-image IoUs, which weighs a tile with one shed like a city block; both are reported, under their own
names. Images without any object matter: without a prompt the decoder still returns a mask, all of it false positive. So each
score is given under three rules, from the same predictions:

    all              as the reference counts: every image, whatever was predicted
    empty_as_empty   an image without objects counts as predicted empty (no prompt, no mask)
    with_objects     only images that have objects
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bench.errors import unknown

RULES = ("all", "empty_as_empty", "with_objects")


@dataclass(frozen=True)
class ImageRow:
    """One test image: the number of its objects, and pixel counts. `truth` and `predicted` are foreground pixels.

    What came later is None in older cells: `pixels` of the image; of Boundary IoU (`bench.data.boundary`) the pixels of both regions'
    intersection and union, and of the true one; `predicted_iou`, the mean of SAM's own estimates for the image's masks, in percent (None
    too without a mask). confusion: of a data set with classes, "truth:predicted:pixels" for each pair of class ids that occurs, spaces
    between. instances: where a data set states its objects, each in their order as "class:truth:predicted:score" and, for each object j
    (from 1) that its mask meets, ":j=pixels"; pixels of truth and prediction, SAM's estimate of the mask's IoU, class 1 without classes.
    """

    name: str
    objects: int
    intersection: int
    union: int
    truth: int
    predicted: int
    pixels: int | None = None
    boundary_intersection: int | None = None
    boundary_union: int | None = None
    predicted_iou: float | None = None
    boundary_truth: int | None = None
    confusion: str | None = None
    instances: str | None = None


def count(name: str, objects: int, predicted: np.ndarray, truth: np.ndarray) -> ImageRow:
    """The row of one image from its binary maps (H, W), predicted and true."""
    p, t = predicted.astype(bool), truth.astype(bool)
    both, either = int(np.count_nonzero(p & t)), int(np.count_nonzero(p | t))
    return ImageRow(name, objects, both, either, int(np.count_nonzero(t)), int(np.count_nonzero(p)))


def under_rule(rows: Sequence[ImageRow], rule: str) -> list[ImageRow]:
    """The rows as a rule counts them."""
    if rule == "with_objects":
        return [row for row in rows if row.objects]
    if rule == "empty_as_empty":
        return [row if row.objects else _empty(row) for row in rows]
    return list(rows)


def _empty(row: ImageRow) -> ImageRow:
    """The row as if nothing was predicted."""
    edge = row.boundary_truth if row.truth else 0
    missed: dict[int, int] = {}
    for truth, _, pixels in confusion(row):
        missed[truth] = missed.get(truth, 0) + pixels
    classes = None if row.confusion is None else " ".join(f"{truth}:0:{pixels}" for truth, pixels in missed.items())
    none = ImageRow(row.name, 0, 0, row.truth, row.truth, 0, row.pixels, boundary_intersection=0, boundary_union=edge)
    return replace(none, boundary_truth=edge, confusion=classes, instances=row.instances)


def pooled_iou(rows: Sequence[ImageRow]) -> float:
    """Σ intersection / Σ union in percent; NaN where the union is empty."""
    return _percent(sum(r.intersection for r in rows), sum(r.union for r in rows))


def pooled_dice(rows: Sequence[ImageRow]) -> float:
    """2·Σ intersection / (Σ predicted + Σ truth) in percent; NaN where both are empty."""
    return _percent(2 * sum(r.intersection for r in rows), sum(r.predicted + r.truth for r in rows))


def image_iou(row: ImageRow, empty: float = 0.0) -> float:
    """One image's IoU in percent; `empty` where prediction and truth are both empty (the reference counts 0)."""
    return _percent(row.intersection, row.union) if row.union else empty


def mean_image_iou(rows: Sequence[ImageRow], empty: float = 0.0) -> float:
    """The mean of the images' IoUs in percent; NaN without images."""
    return float(np.mean([image_iou(row, empty) for row in rows])) if rows else float("nan")


def confusion(row: ImageRow) -> list[tuple[int, int, int]]:
    """The image's confusion matrix as (true class, predicted class, pixels)."""
    return [(int(truth), int(predicted), int(pixels)) for truth, predicted, pixels in map(_parted, (row.confusion or "").split())]


def _parted(entry: str) -> list[str]:
    return entry.split(":")


Terms = Mapping[Hashable, tuple[float, float]]  # the ratios whose mean a metric is: an image's part and whole of each


@dataclass(frozen=True)
class Metric:
    """A score from 0 to 100. It is the mean, over the ratios that `terms` names, of Σ parts / Σ wholes over all images, leaving out those
    whose wholes are all 0; `score` where it is something else. needs: fields of ImageRow that not every cell has.

    terms: an image's, given what one without pixels in prediction and truth is worth, 0 to 1. empty: in words, what such images do.
    """

    title: str
    definition: str
    empty: str
    terms: Callable[[ImageRow, float], Terms] | None = None
    needs: tuple[str, ...] = ()
    better: Literal["higher", "lower"] = "higher"
    score: Callable[[Sequence[ImageRow], float], float] | None = None

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.better == "higher" else -1

    @property
    def in_words(self) -> str:
        """What it is, its range and direction, and what it does on empty images."""
        return f"{self.definition}; 0 to 100, {self.better} is better. {self.empty}."

    def value(self, rows: Sequence[ImageRow], rule: str = "all") -> float:
        """The score of images under a rule, in percent; NaN where it is not defined, or rows lack what it needs."""
        counted, empty = under_rule(rows, rule), worth_of_empty(rule)
        if self.lacks(counted):
            return math.nan
        if self.score:
            return self.score(counted, empty)
        return mean_ratio(self.terms(row, empty) for row in counted) if self.terms else math.nan

    def lacks(self, rows: Iterable[ImageRow]) -> tuple[str, ...]:
        """What some of the rows have not of what it needs."""
        return tuple(name for name in self.needs if any(getattr(row, name) is None for row in rows))


def worth_of_empty(rule: str) -> float:
    """What an image is worth, 0 to 1, in which prediction and truth are both empty: nothing under `all`, as the reference counts."""
    return 1.0 if rule == "empty_as_empty" else 0.0


def mean_ratio(terms: Iterable[Terms]) -> float:
    """The mean of Σ parts / Σ wholes in percent; NaN where no whole is above 0."""
    sums: dict[Hashable, tuple[float, float]] = {}
    for of_image in terms:
        for name, (part, whole) in of_image.items():
            parts, wholes = sums.get(name, (0, 0))
            sums[name] = parts + part, wholes + whole
    ratios = [100 * part / whole for part, whole in sums.values() if whole]
    return sum(ratios) / len(ratios) if ratios else math.nan


def _two_classes(row: ImageRow, _: float) -> Terms:
    pixels = row.pixels or 0
    return {"foreground": (row.intersection, row.union), "background": (pixels - row.union, pixels - row.intersection)}


def _errors(row: ImageRow, _: float) -> Terms:
    missed, added = row.truth - row.intersection, row.predicted - row.intersection
    return {"foreground": (missed, row.truth), "background": (added, (row.pixels or 0) - row.truth)}


def _classes(row: ImageRow, _: float) -> Terms:
    both: dict[Hashable, int] = {}
    either: dict[Hashable, int] = {}
    for truth, predicted, pixels in confusion(row):
        for number in {truth, predicted} - {0}:
            either[number] = either.get(number, 0) + pixels
            both[number] = both.get(number, 0) + pixels * (truth == predicted)
    return {number: (both[number], either[number]) for number in either}


def _ratio(part: float, whole: float, empty: float) -> Terms:
    """A ratio of one image, of which a mean over images is made."""
    return {"": (part / whole if whole else empty, 1)}


def _average_precision(rows: Sequence[ImageRow], threshold: float | None = None) -> float:
    from bench.grid.average_precision import average_precision  # loads pycocotools

    return average_precision(rows, threshold)


BOUNDARY = ("boundary_intersection", "boundary_union")
NOT_COUNTED = "An image without pixels in prediction and truth adds nothing"
BY_RULE = "An image without pixels in prediction and truth counts 0 under the rule `all`, 100 under `empty_as_empty`"
METRICS: Mapping[str, Metric] = {
    "miou": Metric(
        "foreground mIoU (%)",
        "Foreground IoU, intersection over union, of one confusion matrix pooled over all test pixels; the paper's mIoU",
        NOT_COUNTED,
        lambda row, _: {"": (row.intersection, row.union)},
    ),
    "dice": Metric(
        "foreground Dice (%)",
        "Dice of the foreground, 2 intersection / (predicted + truth), pooled over all test pixels",
        NOT_COUNTED,
        lambda row, _: {"": (2 * row.intersection, row.predicted + row.truth)},
    ),
    "mean_image_iou": Metric(
        "mean IoU of images (%)",
        "The mean of the images' foreground IoUs",
        BY_RULE,
        lambda row, empty: _ratio(row.intersection, row.union, empty),
        score=lambda rows, empty: mean_image_iou(rows, 100 * empty),
    ),
    "mean_image_dice": Metric(
        "mean Dice of images (%)",
        "The mean of the images' foreground Dice, as PraNet reports",
        BY_RULE,
        lambda row, empty: _ratio(2 * row.intersection, row.predicted + row.truth, empty),
    ),
    "two_class_miou": Metric(
        "mIoU of foreground and background (%)",
        "The mean of the IoUs of foreground and background, each pooled over all test pixels",
        "An image without foreground counts for the background; a class that is nowhere is left out",
        _two_classes,
        ("pixels",),
    ),
    "mean_image_two_class_miou": Metric(
        "mean two-class mIoU of images (%)",
        "The mean over images of the mean of the IoUs of foreground and background",
        "A class that an image has in neither prediction nor truth is left out of its mean, so that one without foreground may have 100",
        lambda row, empty: _ratio(mean_ratio([_two_classes(row, empty)]), 100, empty),
        ("pixels",),
    ),
    "ber": Metric(
        "balanced error rate (%)",
        "Half the sum of the error rates of foreground and background pixels, pooled over all test pixels, as SBU's papers report",
        "An image without foreground counts for the background's error rate; a class without any pixel is left out",
        _errors,
        ("pixels",),
        "lower",
    ),
    "boundary_iou": Metric(
        "Boundary IoU (%)",
        "IoU of the pixels within 2 % of the image's diagonal of the mask's edge, pooled over all test pixels",
        NOT_COUNTED,
        lambda row, _: {"": (row.boundary_intersection or 0, row.boundary_union or 0)},
        BOUNDARY,
    ),
    "mean_image_boundary_iou": Metric(
        "mean Boundary IoU of images (%)",
        "The mean of the images' Boundary IoUs, HQ-SAM's mBIoU",
        BY_RULE,
        lambda row, empty: _ratio(row.boundary_intersection or 0, row.boundary_union or 0, empty),
        BOUNDARY,
    ),
    "class_miou": Metric(
        "mIoU of classes (%)",
        "The mean IoU of the classes but the background, of one confusion matrix pooled over all test pixels",
        "Without objects nothing of a class is predicted; a class that is nowhere is left out",
        _classes,
        ("confusion",),
    ),
    "ap": Metric(
        "mask AP (%)",
        "COCO's average precision of masks over IoU thresholds 0.50 to 0.95, ranked by SAM's estimate, of objects asked for one by one",
        "An image without objects adds nothing",
        needs=("instances",),
        score=lambda rows, _: _average_precision(rows),
    ),
    "ap50": Metric(
        "mask AP50 (%)",
        "COCO's average precision of masks at the IoU threshold 0.50, ranked by SAM's estimate, of objects asked for one by one",
        "An image without objects adds nothing",
        needs=("instances",),
        score=lambda rows, _: _average_precision(rows, 0.5),
    ),
}
USUAL = "miou"
WHOLE = "is of all images' objects together"  # a metric without terms
RECORDED = ("miou", "dice", "mean_image_iou")  # what records have; all others are read off the rows by image


def metric_of(name: str) -> Metric:
    """The metric of a name; RequestError for one that there is not."""
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def scores(rows: Sequence[ImageRow]) -> dict[str, float]:
    """What a record has, in percent: each of RECORDED as `<name>_<rule>`, rule by rule."""
    return {f"{name}_{rule}": METRICS[name].value(rows, rule) for rule in RULES for name in RECORDED}


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")
