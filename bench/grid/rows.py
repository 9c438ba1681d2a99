"""A cell's rows by test image, and whether its record's scores are those of its rows."""

import csv
import math
import os
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from bench.grid.files import remember, remembered
from bench.grid.metrics import ImageRow, metric_of, scores

IMAGES = "images.csv"
COUNTS = ("objects", "intersection", "union", "truth", "predicted")
LATER: Mapping[str, Callable[[str], Any]] = {  # columns that not every cell has, and how they are read
    **dict.fromkeys(("pixels", "boundary_intersection", "boundary_union", "boundary_truth"), lambda text: int(text) if text else None),
    "confusion": lambda text: text or None,
    "instances": str,
}
TOLERANCE = 1e-6  # percent
ABSENT = -1
Scores = Mapping[str, Mapping[str, float]]


def stamp(path: Path) -> tuple[int, int]:
    """What changes with a file's content: its size and time of change; ABSENT for both where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ABSENT, ABSENT
    return found.st_size, found.st_mtime_ns


def read_image_rows(folder: Path) -> dict[str, list[ImageRow]] | None:
    """Selection -> the rows of a cell's folder; None where the file is absent or cannot be read."""
    found: dict[str, list[ImageRow]] = {}
    try:
        with open(folder / IMAGES, newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            heads = next(lines)
            own = itemgetter(*(heads.index(name) for name in ("selection", "name", *COUNTS)))
            later = {name: (heads.index(name), read) for name, read in LATER.items() if name in heads}
            for line in lines:
                selection, name, *counts = own(line)
                more = {key: read(line[i]) for key, (i, read) in later.items()}
                objects, both, either, truth, predicted = map(int, counts)
                found.setdefault(selection, []).append(ImageRow(name, objects, both, either, truth, predicted, **more))
    except (OSError, ValueError, IndexError, StopIteration, csv.Error):
        return None
    return found


def score_of(folder: Path, selection: str, rule: str, metric: str) -> float:
    """A cell's score by any metric, from its rows; NaN where they are absent, or lack what it needs."""
    rows = _kept(folder, stamp(folder / IMAGES)) or {}
    return metric_of(metric).value(rows[selection], rule) if rows.get(selection) else math.nan


def lacks(folder: Path, selection: str, metric: str) -> tuple[str, ...]:
    """The columns of a cell's rows that a metric needs and that they have not."""
    return metric_of(metric).lacks((_kept(folder, stamp(folder / IMAGES)) or {}).get(selection, ()))


@lru_cache(maxsize=1024)
def _kept(folder: Path, stamp: tuple[int, int]) -> dict[str, list[ImageRow]] | None:
    """The rows of a file with this stamp."""
    return read_image_rows(folder)


def disagreement(folder: Path, said: Scores) -> str:
    """In which score a record says something else than its rows; empty where in none, or where there are no rows that can be read."""
    rows = read_image_rows(folder)
    if rows is None:
        return ""
    for selection, values in said.items():
        for name, value in scores(rows.get(selection, ())).items():
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
