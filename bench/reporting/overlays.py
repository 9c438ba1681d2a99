"""The picture of one prediction: the image with its mask tinted and outlined and its prompts drawn, readable at any image size."""

from collections.abc import Sequence

import cv2
import numpy as np

from bench.data.image_files import Bytes
from bench.reporting.style import COLOURS
from bench.types import Prompts

SIDES = 640, 1600  # pixels: the longer side of the picture is brought between them
MASK, BOX, FOREGROUND, BACKGROUND = COLOURS[5], "#F0E442", COLOURS[2], COLOURS[3]  # Okabe and Ito, told apart by form as well
TINT = 0.4
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
SUBPIXEL = 4  # bits


def overlay_picture(image: Bytes, mask: np.ndarray, prompts: Sequence[Prompts], given: Sequence[np.ndarray] = ()) -> Bytes:
    """The picture (h, w, 3) uint8 RGB of an image (H, W, 3) with its predicted mask (H, W) bool.

    prompts: in pixels of the image; boxes are yellow, foreground points green discs, background points pink crosses. given: masks
    (H, W) that were prompts; they are outlined in white. Small images are enlarged and large ones made smaller.
    """
    scale = _scale(*image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    shown = np.array(cv2.resize(image, (width, height), interpolation=way), np.uint8)
    line = max(2, round(max(height, width) / 400))
    inside = _resized(mask, width, height)
    shown[inside] = ((1 - TINT) * shown[inside] + TINT * np.array(_rgb(MASK))).astype(np.uint8)
    for one in given:
        _outline(shown, _resized(one, width, height), WHITE, line)
    _outline(shown, inside, _rgb(MASK), line)
    for of_kind in prompts:
        for box in of_kind.boxes.tolist() if of_kind.boxes is not None else ():
            _draw_box(shown, np.array(box) * scale, line)
    for of_kind in prompts:
        if of_kind.points is not None and of_kind.labels is not None:
            for xy, label in zip(of_kind.points.flatten(0, 1).numpy(), of_kind.labels.flatten().tolist(), strict=True):
                _draw_point(shown, xy * scale, bool(label), line)
    return shown


def _scale(height: int, width: int) -> float:
    """What brings the longer side into SIDES; enlarged by whole numbers, so that pixels stay square."""
    longer = max(height, width)
    if longer < SIDES[0]:
        return float(-(-SIDES[0] // longer))
    return min(1.0, SIDES[1] / longer)


def _resized(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """A mask (H, W) at (height, width), bool; smooth where it is enlarged."""
    smooth = cv2.resize(
        mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA if width < mask.shape[1] else cv2.INTER_LINEAR
    )
    return np.asarray(smooth > 0.5)


def _outline(shown: Bytes, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
    """Draws a mask's edge in a colour on a dark line, so that it shows on bright and dark ground."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for paint, thickness in ((BLACK, 2 * line), (colour, line)):
        cv2.drawContours(shown, contours, -1, paint, thickness, cv2.LINE_AA)


def _draw_box(shown: Bytes, xyxy: np.ndarray, line: int) -> None:
    first, second = (tuple(round(v * 2**SUBPIXEL) for v in xyxy[i : i + 2]) for i in (0, 2))
    for paint, thickness in ((BLACK, 2 * line), (_rgb(BOX), line)):
        cv2.rectangle(shown, first, second, paint, thickness, cv2.LINE_AA, SUBPIXEL)


def _draw_point(shown: Bytes, xy: np.ndarray, foreground: bool, line: int) -> None:
    x, y = (round(float(v)) for v in xy)
    radius = 3 * line
    if foreground:
        cv2.circle(shown, (x, y), radius + line, BLACK, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(shown, (x, y), radius + line // 2, WHITE, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(shown, (x, y), radius - line // 2, _rgb(FOREGROUND), cv2.FILLED, cv2.LINE_AA)
        return
    for paint, thickness in ((BLACK, 4 * line), (WHITE, 3 * line), (_rgb(BACKGROUND), round(1.5 * line))):
        for slope in (-1, 1):
            ends = (x - radius, y - slope * radius), (x + radius, y + slope * radius)
            cv2.line(shown, *ends, paint, thickness, cv2.LINE_AA)


def _rgb(colour: str) -> tuple[int, int, int]:
    """ "#0072B2" as (r, g, b)."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return r, g, b
