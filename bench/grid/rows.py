"""A cell's rows by test image, and whether its record's scores are those of its rows."""

import csv
import math
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from bench.grid.files import remember, remembered
from bench.grid.metrics import TEXTS, Images, metric_of, scores

IMAGES = "images.csv"
COUNTS = ("objects", "intersection", "union", "truth", "predicted")
LATER = ("pixels", "boundary_intersection", "boundary_union", "boundary_truth", "confusion", "instances")  # what not every cell has
TOLERANCE = 1e-6  # percent
ABSENT = -1
Scores = Mapping[str, Mapping[str, float]]


def stamp(path: Path | str) -> tuple[int, int]:
    """What changes with a file's content: its size and time of change; ABSENT for both where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ABSENT, ABSENT
    return found.st_size, found.st_mtime_ns


def image_rows(folder: Path) -> Mapping[str, Images] | None:
    """As `read_image_rows`, of a file that is read once, until it changes."""
    return _kept(folder, stamp(f"{folder}/{IMAGES}"))


@lru_cache(maxsize=1024)  # tables and figures ask for the same rows many times
def _kept(folder: Path, stamp: tuple[int, int]) -> Mapping[str, Images] | None:
    return read_image_rows(folder)


def read_image_rows(folder: Path) -> dict[str, Images] | None:
    """Selection -> the rows of a cell's folder; None where the file is absent or cannot be read."""
    try:
        with open(folder / IMAGES, newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            heads = next(lines)
            columns = list(zip(*lines, strict=True)) or [()] * len(heads)
        chosen = columns[heads.index("selection")]
        own = {name: columns[heads.index(name)] for name in ("name", *COUNTS)}
        later = {name: columns[heads.index(name)] for name in LATER if name in heads}
        return {name: _images({**own, **later}, [of == name for of in chosen]) for name in dict.fromkeys(chosen)}
    except (OSError, ValueError, OverflowError, IndexError, StopIteration, csv.Error):
        return None


def _images(columns: Mapping[str, Sequence[str]], which: Sequence[bool]) -> Images:
    """Some lines' images. A column with an empty text is one that not every image has; but an image can have no instances."""
    texts = {name: list(compress(column, which)) for name, column in columns.items()}
    texts["name"] = list(map(sys.intern, texts["name"]))
    whole = {name: of for name, of in texts.items() if name not in LATER or name == "instances" or all(of)}
    return Images(**{name: of if name in TEXTS else np.fromiter(map(int, of), np.int64, len(of)) for name, of in whole.items()})  # type: ignore[arg-type]


def score_of(folder: Path, selection: str, rule: str, metric: str) -> float:
    """A cell's score by any metric, from its rows; NaN where they are absent, or lack what it needs."""
    images = (image_rows(folder) or {}).get(selection)
    return metric_of(metric).value(images, rule) if images else math.nan


def lacks(folder: Path, selection: str, metric: str) -> tuple[str, ...]:
    """The columns of a cell's rows that a metric needs and that they have not."""
    images = (image_rows(folder) or {}).get(selection)
    return metric_of(metric).lacks(images) if images else ()


def disagreement(folder: Path, said: Scores) -> str:
    """In which score a record says something else than its rows; empty where in none, or where there are no rows that can be read."""
    found = image_rows(folder)
    if found is None:
        return ""
    for selection, values in said.items():
        for name, value in scores(found[selection] if selection in found else Images.of(())).items():
            other = values.get(name, value)
            if not (math.isnan(value) and math.isnan(other)) and not abs(value - other) <= TOLERANCE:
                return f"its {selection} {name} is {other:.6g}, and {value:.6g} by its {IMAGES}"
    return ""


class Compared:
    """Which records were compared with their rows and agree, remembered in a file by both files' size and time of change: the rows of
    thousands of cells take minutes to read. path: None where nothing is remembered."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._new = False

    @cached_property
    def _known(self) -> dict[str, Any]:
        return remembered(self.path)

    def disagreement(self, folder: Path, record: Path, said: Scores) -> str:
        """As the function of this name, which is asked only where one of the files changed."""
        facts = [*stamp(record), *stamp(folder / IMAGES)]
        if ABSENT in facts:  # without rows there is nothing to compare
            return ""
        if self._known.get(str(folder)) == facts:
            return ""
        if not (found := disagreement(folder, said)):
            self._known[str(folder)], self._new = facts, True
        return found

    def remember(self) -> None:
        """Writes what was compared since."""
        if self._new:
            self._new = False
            remember(self.path, self._known)
