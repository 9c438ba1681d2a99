"""Contact sheets: a grid of scenes with the outlines of their masks, to look at."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def outlined(image: Bytes, labels: Bytes, colour: tuple[int, int, int] = (0, 255, 60)) -> Bytes:
    """A copy of `image` (h, w, 3) with the border of every label of `labels` (h, w) drawn in `colour`."""
    result = image.copy()
    for value in np.unique(labels[labels > 0]):
        contours, _ = cv2.findContours((labels == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, contours, -1, colour, 1)
    return result


def sheet(rows: Sequence[Sequence[Bytes]], gap: int = 2) -> Bytes:
    """One image (H, W, 3) that shows `rows` of equally large images, `gap` pixels apart."""
    return np.vstack([np.hstack([np.pad(tile, ((gap, gap), (gap, gap), (0, 0))) for tile in row]) for row in rows])
