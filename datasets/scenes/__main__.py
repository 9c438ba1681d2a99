"""Writes a contact sheet of all scenes.

    python -m datasets.scenes --out sheet.png     # seconds on one CPU core

One row of images a generator, and below it their objects outlined.
"""

import sys
from pathlib import Path

import cv2

from bench.grid.command_line import command_parser

from . import buildings, home, polyps, rng_for, shadows
from .sheet import outlined, sheet

COLUMNS = 8


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
            rows += [[image for image, _ in drawn], [outlined(image, labels) for image, labels in drawn]]
    if not cv2.imwrite(str(options.out), sheet(rows)[..., ::-1]):
        print(f"cannot write {options.out}: the folder must exist and the name end in .png", file=sys.stderr)
        return 1
    print(f"{options.out}: {len(rows)} rows of {COLUMNS} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
