"""Mask AP by COCO's own evaluation, from the pixels that cells keep of their objects instead of masks."""

import contextlib
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval


@dataclass(frozen=True)
class Instance:
    """One of an image's objects, and what its prompt gave: pixels of truth and prediction, SAM's estimate as the score, and the pixels
    that the prediction shares with each object, by number from 1."""

    category: int
    truth: int
    predicted: int
    score: float
    shared: Mapping[int, int]

    @classmethod
    def of(cls, text: str) -> "Instance":
        """From an entry of `ImageRow.instances`."""
        category, truth, predicted, score, *shared = text.split(":")
        pairs = (each.split("=") for each in shared)
        return cls(int(category), int(truth), int(predicted), float(score), {int(j): int(pixels) for j, pixels in pairs})


def average_precision(images: Sequence[str], threshold: float | None = None) -> float:
    """AP in percent, the mean over COCO's IoU thresholds, or at one of them, and over the classes that have objects; NaN without any.
    images: of each, its `ImageRow.instances`.

    Every object is one to be found, and is asked for by a prompt of its own. COCO ranks at most 100 predictions of an image and class.
    """
    evaluation = _Evaluation([[Instance.of(text) for text in of.split()] for of in images])
    if not evaluation.params.catIds:
        return math.nan
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of each step
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # (thresholds, recalls, classes) of all areas and most predictions
    if threshold is not None:
        precision = precision[np.isclose(evaluation.params.iouThrs, threshold)]
    return 100 * float(precision[precision > -1].mean())


class _Evaluation(COCOeval):
    """COCO's evaluation, told objects and IoUs."""

    def __init__(self, images: Sequence[Sequence[Instance]]) -> None:
        super().__init__(iouType="segm")
        self.images = images
        self.params.imgIds = list(range(len(images)))
        self.params.catIds = sorted({found.category for image in images for found in image})
        self.params.areaRng, self.params.areaRngLbl = [[0, 1e10]], ["all"]

    def _prepare(self) -> None:
        self._gts, self._dts = defaultdict(list), defaultdict(list)
        everything = [(image, j, found) for image, of in enumerate(self.images) for j, found in enumerate(of, 1)]
        for number, (image, j, found) in enumerate(everything, 1):
            common: dict[str, Any] = {"id": number, "number": j, "found": found}
            self._gts[image, found.category].append({**common, "area": found.truth, "ignore": 0, "iscrowd": 0})
            self._dts[image, found.category].append({**common, "area": found.predicted, "score": found.score})

    def computeIoU(self, image: int, category: int) -> "NDArray[np.float64] | list[float]":
        """(predictions by falling score, objects) of an image and class."""
        truths = self._gts[image, category]
        predictions = sorted(self._dts[image, category], key=lambda one: -one["score"])[: self.params.maxDets[-1]]
        ious = [[_iou(one["found"], truth) for truth in truths] for one in predictions]
        return np.array(ious) if truths else []


def _iou(one: Instance, truth: Mapping[str, Any]) -> float:
    both = one.shared.get(truth["number"], 0)
    return both / max(1, one.predicted + truth["area"] - both)
