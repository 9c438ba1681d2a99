"""Connected regions of binary masks (4-connectivity): their areas, how much of their boxes they fill, and specks."""

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]


def _statistics(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The label map (h, w) of `mask` and (n, 5) rows of left, top, width, height, area; the background is left out."""
    _, labels, rows, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return np.asarray(labels, np.int32), np.asarray(rows, np.int32)[1:]


def areas(mask: Mask) -> NDArray[np.int32]:
    """The pixels (n,) of each region of the 0/1 `mask` (h, w)."""
    return _statistics(mask)[1][:, 4]


def fill_ratios(mask: Mask) -> NDArray[np.float64]:
    """The share (n,) of its bounding box that each region of the 0/1 `mask` covers: the IoU of the box as a prediction."""
    rows = _statistics(mask)[1].astype(np.float64)
    return rows[:, 4] / (rows[:, 2] * rows[:, 3])


def specks(mask: Mask, min_area: float) -> Mask:
    """The regions of the 0/1 `mask` (h, w) with fewer than `min_area` pixels, as a mask."""
    labels, rows = _statistics(mask)
    small = np.concatenate([[False], rows[:, 4] < min_area])
    return small[labels].astype(np.uint8)
