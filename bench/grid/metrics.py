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
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from bench.errors import need_known

RULES = ("all", "empty_as_empty", "with_objects")
TEXTS = ("name", "confusion", "instances")  # columns of `Images` that are lists


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


@dataclass(frozen=True)
class Images:
    """Test images column by column, as `ImageRow` has them: arrays (n,) of whole numbers, and lists of texts; None for what any of them
    lacks."""

    name: list[str]
    objects: np.ndarray
    intersection: np.ndarray
    union: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    pixels: Any = None
    boundary_intersection: Any = None
    boundary_union: Any = None
    boundary_truth: Any = None
    confusion: list[str] | None = None
    instances: list[str] | None = None

    @classmethod
    def of(cls, rows: Sequence[ImageRow]) -> "Images":
        """The same images."""
        columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(cls)}
        whole: dict[str, Any] = {name: of for name, of in columns.items() if None not in of}
        return cls(**whole | {name: np.array(of, np.int64) for name, of in whole.items() if name not in TEXTS})

    def at(self, which: Sequence[int] | np.ndarray) -> "Images":
        """Some of them, in this order."""
        known: dict[str, Any] = {f.name: of for f in fields(self) if (of := getattr(self, f.name)) is not None}
        texts: dict[str, Any] = {name: [of[i] for i in which] for name, of in known.items() if name in TEXTS}
        return Images(**{name: of[which] for name, of in known.items() if name not in TEXTS} | texts)

    def unless_empty(self) -> "Images":
        """The same as if nothing was predicted where an image has no objects."""
        empty, nothing = self.objects == 0, np.zeros_like(self.objects)
        edges = nothing if self.boundary_truth is None else np.where(self.truth > 0, self.boundary_truth, 0)
        unknown = self.boundary_truth is None and bool((empty & (self.truth > 0)).any())
        instead = {"intersection": nothing, "union": self.truth, "predicted": nothing}
        instead |= {"boundary_intersection": nothing, "boundary_union": edges}
        made: dict[str, Any] = {name: np.where(empty, to, of) for name, to in instead.items() if (of := getattr(self, name)) is not None}
        if self.confusion is not None:
            made["confusion"] = [_missed(text) if none else text for text, none in zip(self.confusion, empty, strict=True)]
        return replace(self, **made | ({"boundary_union": None} if unknown else {}))


def under_rule(images: Images, rule: str) -> Images:
    """The images as a rule counts them."""
    if rule == "all" or images.objects.all():
        return images
    if rule == "with_objects":
        return images.at(np.flatnonzero(images.objects))
    return images.unless_empty()


def _missed(text: str) -> str:
    """A confusion matrix as if nothing was predicted."""
    missed: dict[int, int] = {}
    for truth, _, pixels in confusion(text):
        missed[truth] = missed.get(truth, 0) + pixels
    return " ".join(f"{truth}:0:{pixels}" for truth, pixels in missed.items())


def pooled_iou(rows: Sequence[ImageRow]) -> float:
    """Σ intersection / Σ union in percent; NaN where the union is empty."""
    return _percent(sum(r.intersection for r in rows), sum(r.union for r in rows))


def pooled_dice(rows: Sequence[ImageRow]) -> float:
    """2·Σ intersection / (Σ predicted + Σ truth) in percent; NaN where both are empty."""
    return _percent(2 * sum(r.intersection for r in rows), sum(r.predicted + r.truth for r in rows))


def image_iou(row: ImageRow) -> float:
    """One image's IoU in percent; 0 where prediction and truth are both empty, as the reference counts."""
    return _percent(row.intersection, row.union) if row.union else 0.0


def mean_image_iou(images: Images, empty: float = 0.0) -> float:
    """The mean of the images' IoUs in percent; `empty` where prediction and truth are both empty. NaN without images."""
    ((ious, _),) = _ratio(100 * images.intersection, images.union, empty).values()
    return float(np.mean(ious)) if len(ious) else math.nan


def confusion(text: str) -> list[tuple[int, int, int]]:
    """An image's confusion matrix as (true class, predicted class, pixels)."""
    return [(int(truth), int(predicted), int(pixels)) for truth, predicted, pixels in (entry.split(":") for entry in text.split())]


Terms = Mapping[Hashable, tuple[np.ndarray, np.ndarray]]  # the ratios whose mean a metric is: every image's part and whole of each, (n,)


@dataclass(frozen=True)
class Metric:
    """A score from 0 to 100. It is the mean, over the ratios that `terms` names, of Σ parts / Σ wholes over all images, leaving out those
    whose wholes are all 0; `score` where it is something else. needs: fields of ImageRow that not every cell has.

    terms: of images, given what one without pixels in prediction and truth is worth, 0 to 1. empty: in words, what such images do.
    """

    title: str
    definition: str
    empty: str
    terms: Callable[[Images, float], Terms] | None = None
    needs: tuple[str, ...] = ()
    better: Literal["higher", "lower"] = "higher"
    score: Callable[[Images, float], float] | None = None

    @property
    def sign(self) -> int:
        """1 where more is better, else -1."""
        return 1 if self.better == "higher" else -1

    @property
    def in_words(self) -> str:
        """What it is, its range and direction, and what it does on empty images."""
        return f"{self.definition}; 0 to 100, {self.better} is better. {self.empty}."

    def value(self, images: Images, rule: str = "all") -> float:
        """The score of images under a rule, in percent; NaN where it is not defined, or they lack what it needs."""
        return self.of_counted(under_rule(images, rule), worth_of_empty(rule))

    def of_counted(self, images: Images, empty: float) -> float:
        """The same of images that a rule has counted; empty: what one without pixels in prediction and truth is worth, 0 to 1."""
        if self.lacks(images):
            return math.nan
        if self.score:
            return self.score(images, empty)
        return mean_ratio(self.terms(images, empty)) if self.terms else math.nan

    def lacks(self, images: Images) -> tuple[str, ...]:
        """What some of the images have not of what it needs."""
        return tuple(name for name in self.needs if getattr(images, name) is None)


def worth_of_empty(rule: str) -> float:
    """What an image is worth, 0 to 1, in which prediction and truth are both empty: nothing under `all`, as the reference counts."""
    return 1.0 if rule == "empty_as_empty" else 0.0


def mean_ratio(terms: Terms) -> float:
    """The mean of Σ parts / Σ wholes in percent; NaN where no whole is above 0."""
    sums = [(part.sum(), whole.sum()) for part, whole in terms.values()]
    ratios = [100 * float(part) / float(whole) for part, whole in sums if whole]
    return sum(ratios) / len(ratios) if ratios else math.nan


def _two_classes(images: Images) -> Terms:
    pixels, both, either = images.pixels, images.intersection, images.union
    return {"foreground": (both, either), "background": (pixels - either, pixels - both)}


def _mean_of_two(images: Images) -> np.ndarray:
    """Every image's mean IoU of those of the two classes that it has, 0 to 1."""
    parts, wholes = (np.stack(of) for of in zip(*_two_classes(images).values(), strict=True))
    there = wholes > 0
    return np.asarray((parts / np.where(there, wholes, 1)).sum(axis=0, where=there) / np.maximum(there.sum(axis=0), 1))


def _errors(images: Images, _: float) -> Terms:
    missed, added = images.truth - images.intersection, images.predicted - images.intersection
    return {"foreground": (missed, images.truth), "background": (added, images.pixels - images.truth)}


def _classes(images: Images, _: float) -> Terms:
    found: dict[Hashable, tuple[np.ndarray, np.ndarray]] = {}
    for i, text in enumerate(images.confusion or ()):
        for truth, predicted, pixels in confusion(text):
            for number in {truth, predicted} - {0}:
                both, either = found.setdefault(number, (np.zeros_like(images.objects), np.zeros_like(images.objects)))
                either[i] += pixels
                both[i] += pixels * (truth == predicted)
    return found


def _ratio(part: np.ndarray, whole: np.ndarray, empty: float) -> Terms:
    """A ratio of every image, of which a mean over images is made."""
    return {"": (np.divide(part, whole, out=np.full(len(whole), empty, float), where=whole > 0), np.ones(len(whole)))}


def _average_precision(images: Images, threshold: float | None = None) -> float:
    from bench.grid.average_precision import average_precision  # loads pycocotools

    return average_precision(images.instances or (), threshold)


BOUNDARY = ("boundary_intersection", "boundary_union")
NOT_COUNTED = "An image without pixels in prediction and truth adds nothing"
BY_RULE = "An image without pixels in prediction and truth counts 0 under the rule `all`, 100 under `empty_as_empty`"
METRICS: Mapping[str, Metric] = {
    "miou": Metric(
        "foreground mIoU (%)",
        "Foreground IoU, intersection over union, of one confusion matrix pooled over all test pixels; the paper's mIoU",
        NOT_COUNTED,
        lambda images, _: {"": (images.intersection, images.union)},
    ),
    "dice": Metric(
        "foreground Dice (%)",
        "Dice of the foreground, 2 intersection / (predicted + truth), pooled over all test pixels",
        NOT_COUNTED,
        lambda images, _: {"": (2 * images.intersection, images.predicted + images.truth)},
    ),
    "mean_image_iou": Metric(
        "mean IoU of images (%)",
        "The mean of the images' foreground IoUs",
        BY_RULE,
        lambda images, empty: _ratio(images.intersection, images.union, empty),
        score=lambda images, empty: mean_image_iou(images, 100 * empty),
    ),
    "mean_image_dice": Metric(
        "mean Dice of images (%)",
        "The mean of the images' foreground Dice, as PraNet reports",
        BY_RULE,
        lambda images, empty: _ratio(2 * images.intersection, images.predicted + images.truth, empty),
    ),
    "two_class_miou": Metric(
        "mIoU of foreground and background (%)",
        "The mean of the IoUs of foreground and background, each pooled over all test pixels",
        "An image without foreground counts for the background; a class that is nowhere is left out",
        lambda images, _: _two_classes(images),
        ("pixels",),
    ),
    "mean_image_two_class_miou": Metric(
        "mean two-class mIoU of images (%)",
        "The mean over images of the mean of the IoUs of foreground and background",
        "A class that an image has in neither prediction nor truth is left out of its mean, so that one without foreground may have 100",
        lambda images, _: {"": (_mean_of_two(images), np.ones(len(images.name)))},
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
        lambda images, _: {"": (images.boundary_intersection, images.boundary_union)},
        BOUNDARY,
    ),
    "mean_image_boundary_iou": Metric(
        "mean Boundary IoU of images (%)",
        "The mean of the images' Boundary IoUs, HQ-SAM's mBIoU",
        BY_RULE,
        lambda images, empty: _ratio(images.boundary_intersection, images.boundary_union, empty),
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
        score=lambda images, _: _average_precision(images),
    ),
    "ap50": Metric(
        "mask AP50 (%)",
        "COCO's average precision of masks at the IoU threshold 0.50, ranked by SAM's estimate, of objects asked for one by one",
        "An image without objects adds nothing",
        needs=("instances",),
        score=lambda images, _: _average_precision(images, 0.5),
    ),
}
USUAL = "miou"
OF_ALL = "is of all images' objects together"  # a metric without terms
RECORDED = ("miou", "dice", "mean_image_iou")  # what records have; all others are read off the rows by image


def metric_of(name: str) -> Metric:
    """The metric of a name; RequestError for one that there is not."""
    need_known("metric", METRICS, name)
    return METRICS[name]


def scores(images: Images) -> dict[str, float]:
    """What a record has, in percent: each of RECORDED as `<name>_<rule>`, rule by rule."""
    counted = [(of := under_rule(images, rule), 0.0 if of.union.all() else worth_of_empty(rule)) for rule in RULES]
    found: dict[tuple[int, float], list[float]] = {}  # where all images have objects, all rules are one
    for of, empty in counted:
        if (id(of), empty) not in found:
            found[id(of), empty] = [METRICS[name].of_counted(of, empty) for name in RECORDED]
    by_rule = [found[id(of), empty] for of, empty in counted]
    return {f"{name}_{rule}": value for rule, of in zip(RULES, by_rule, strict=True) for name, value in zip(RECORDED, of, strict=True)}


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")
