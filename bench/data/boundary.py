"""A mask's boundary region, of which Boundary IoU is made (Cheng et al., CVPR 2021, as HQ-SAM reports it)."""

import math

import cv2
import numpy as np

from bench.data.objects import Masks

WIDTH = 0.02  # of the image's diagonal


def boundary(mask: Masks) -> Masks:
    """The pixels of `mask` (H, W) bool that are at most WIDTH × diagonal, rounded and at least 1, away from what is not in it; beyond
    the image's edge nothing is. Away: the larger of both coordinates' differences, as by erosions with a 3×3 square."""
    width = max(1, round(WIDTH * math.hypot(*mask.shape)))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    found: Masks = mask & (inner == 0)
    return found
