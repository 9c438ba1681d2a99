"""Sheets: which images are picked, which cells stand beside each other."""

from pathlib import Path

import numpy as np
import pytest
from test_renderings import CAT, SAM, put

from bench.errors import RequestError
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery
from bench.reporting.image_selection import _selected, selected_images
from bench.reporting.sheets import draw, sheets
from bench.sheets import main


def test_best_median_worst_and_disagreement_are_four_images() -> None:
    means, spans = np.array([50.0, 90.0, 10.0, 60.0, 40.0]), np.array([1.0, 30.0, 2.0, 3.0, 20.0])
    assert _selected(list("abcde"), means, spans) == {"best": "b", "median": "a", "worst": "c", "disagreement": "e"}
    assert _selected(["a", "b"], means[:2], spans[:2]) == {"best": "b", "worst": "a"}


def test_images_are_picked_from_the_cells_rows(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    cells = [store.folder(put(store, 60.0, method=method, empty=5)) for method in (SAM, CAT)]
    found = selected_images(cells)
    assert set(found) == {"best", "median", "worst", "disagreement"} and all(name < "035" for name in found.values())
    (cells[0] / "images.csv").unlink()
    with pytest.raises(RequestError, match="same test images"):
        selected_images(cells)


def test_a_sheet_has_every_method_of_the_first_common_run(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for method, seeds in ((SAM, (0, 1)), (CAT, (1, 2))):
        for seed in seeds:
            put(store, 60.0, method=method, seed=seed)
    (sheet,) = sheets(store, CellQuery())
    assert list(sheet.cells) == ["SAM", "CAT-SAM-T"]
    assert all("_seed1_" in folder.name for folder in sheet.cells.values())
    assert sheet.name.startswith("predictions_whu_vit_l_")


def test_an_unknown_image_is_one_sentence(tmp_path: Path, rectangles, sam) -> None:
    store = ResultStore(tmp_path)
    put(store, 60.0)
    (sheet,) = sheets(store, CellQuery())
    with pytest.raises(RequestError, match="whu has no test image named nine"):
        draw(sheet, rectangles, sam, tmp_path, ["nine"])
    assert main(["--out", str(tmp_path / "empty")]) == 2
