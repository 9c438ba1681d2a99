"""The metric: foreground IoU of one confusion matrix pooled over all test pixels, which the paper calls mIoU.

It is not the mean of per-image IoUs, which weighs a tile with one shed like a city block; both are reported, under their own
names. Images without any object matter: without a prompt the decoder still returns a mask, all of it false positive. So each
score is given under three rules, from the same predictions:

    all              as the reference counts: every image, whatever was predicted
    empty_as_empty   an image without objects counts as predicted empty (no prompt, no mask)
    with_objects     only images that have objects
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RULES = ("all", "empty_as_empty", "with_objects")


@dataclass(frozen=True)
class ImageRow:
    """One test image: the number of its objects, and pixel counts. `truth` and `predicted` are foreground pixels.

    What came later is None in older cells: `pixels` of the image; of Boundary IoU (`bench.data.boundary`) the pixels of both regions'
    intersection and union; `predicted_iou`, the mean of SAM's own estimates for the image's masks, in percent (None too without a mask).
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
        return [row if row.objects else ImageRow(row.name, 0, 0, row.truth, row.truth, 0) for row in rows]
    return list(rows)


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


SCORES = {"miou": pooled_iou, "dice": pooled_dice, "mean_image_iou": mean_image_iou}


def scores(rows: Sequence[ImageRow]) -> dict[str, float]:
    """All scores in percent: each of SCORES as `<name>_<rule>`.

    Where prediction and truth are both empty an image's IoU is 0 under `all`, as the reference counts, and 100 under
    `empty_as_empty`.
    """
    found = {}
    for rule in RULES:
        counted = under_rule(rows, rule)
        found[f"miou_{rule}"] = pooled_iou(counted)
        found[f"dice_{rule}"] = pooled_dice(counted)
        found[f"mean_image_iou_{rule}"] = mean_image_iou(counted, 100.0 if rule == "empty_as_empty" else 0.0)
    return found


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")
