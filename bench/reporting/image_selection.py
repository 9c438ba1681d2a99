"""Which test images a sheet shows, picked by numbers and not by eye."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.errors import RequestError
from bench.grid.store import read_record
from bench.reporting.table_statistics import read_rows, same_images


def selected_images(cells: Sequence[Path]) -> dict[str, str]:
    """Row title -> image: best, median and worst by the mean IoU of all cells, and the image on which the cells disagree most.

    Images with objects only, none twice, ties by name. RequestError where the cells were not tested on the same images.
    """
    rows = [read_rows(folder, read_record(folder).spec.settings.selections[0], "with_objects") for folder in cells]
    if (found := same_images(rows)) is None:
        raise RequestError("The cells of a sheet need rows by image of the same test images, and some have others or none.")
    names, pixels = found
    ious = 100 * pixels[:, :, 0] / np.maximum(pixels[:, :, 1], 1)
    return _selected(names, ious.mean(axis=0), np.ptp(ious, axis=0))


def _selected(names: Sequence[str], means: np.ndarray, spans: np.ndarray) -> dict[str, str]:
    ranked = [names[i] for i in np.argsort(-means, kind="stable")]
    apart = [names[i] for i in np.argsort(-spans, kind="stable")]
    wanted: Mapping[str, list[str]] = {
        "best": ranked,
        "worst": ranked[::-1],
        "disagreement": apart,
        "median": sorted(ranked, key=lambda name: abs(ranked.index(name) - (len(ranked) - 1) / 2)),
    }
    found: dict[str, str] = {}
    for title, order in wanted.items():
        free = [name for name in order if name not in found.values()]
        if free:
            found[title] = free[0]
    return {title: found[title] for title in ("best", "median", "worst", "disagreement") if title in found}
