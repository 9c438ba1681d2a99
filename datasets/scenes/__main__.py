"""Writes a contact sheet of all scenes.

    python -m datasets.scenes --out sheet.png     # seconds on one CPU core

One row of images a generator, and below it their objects outlined.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.grid.command_line import command_parser

from . import buildings, home, polyps, rng_for, shadows

COLUMNS = 8
GAP = 2  # pixels around an image


def main() -> int:
    """Draws `--rows` rows of each generator, every one with its outlines below it, and writes them to `--out`."""
    parser = command_parser("datasets.scenes", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="the PNG file to write")
    parser.add_argument("--size", type=int, default=192, help="side of each image in pixels")
    parser.add_argument("--rows", type=int, default=1, help=f"rows of {COLUMNS} images for each generator")
    options = parser.parse_args()
    rows = []
    for scene in (home, buildings, polyps, shadows):
        for row in range(options.rows):
            drawn = [scene(rng_for("sheet", scene.__name__, row, column), options.size) for column in range(COLUMNS)]
            rows += [[image for image, _ in drawn], [_outlined(image, labels) for image, labels in drawn]]
    sheet = np.vstack([np.hstack([np.pad(tile, ((GAP, GAP), (GAP, GAP), (0, 0))) for tile in row]) for row in rows])
    if not cv2.imwrite(str(options.out), sheet[..., ::-1]):
        print(f"cannot write {options.out}: the folder must exist and the name end in .png", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(rows)} rows of {COLUMNS} images")
    return 0


def _outlined(image: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of `image` (h, w, 3) with the border of every label of `labels` (h, w) drawn in green."""
    result = image.copy()
    for value in np.unique(labels[labels > 0]):
        contours, _ = cv2.findContours((labels == value).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(result, contours, -1, (0, 255, 60), 1)
    return result


if __name__ == "__main__":
    sys.exit(main())
