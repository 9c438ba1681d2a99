"""Tidy tables: documented columns, a row a cell, a row an image, and nothing damaged counted."""

from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from test_renderings import CAT, put

import bench
from bench.export import main
from bench.exporting.cell_tables import COLUMNS, IDENTITY
from bench.grid.store import ResultStore


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path)
    put(store, 70.0)
    put(store, 80.0, method=CAT, shots="full")
    return store


def documented(column: str) -> bool:
    selection, _, rest = column.partition(".")
    scored = selection in ("best", "last", "val") and rest.startswith(("miou_", "dice_", "mean_image_iou_"))
    return column in COLUMNS or scored or column.startswith(("parameter.", "cost.", "provenance."))


def test_results_have_a_row_a_cell_and_documented_columns(store: ResultStore) -> None:
    table = bench.results(store.root)
    assert sorted(table["label"]) == ["cat_sam_t", "lora(decoder=sam)"]
    assert set(table["shots"]) == {"1", "full"}
    assert [column for column in table.columns if not documented(column)] == []


def test_image_rows_have_a_row_a_selection_and_image(store: ResultStore) -> None:
    table = bench.image_rows(store.root)
    assert len(table) == 2 * 2 * 40
    assert tuple(table.columns[: len(IDENTITY)]) == IDENTITY
    pooled = table[table["selection"] == "best"].groupby("label")[["intersection", "union"]].sum()
    assert (100 * pooled["intersection"] / pooled["union"]).round().to_dict() == pytest.approx(
        {"lora(decoder=sam)": 70, "cat_sam_t": 80}, abs=2
    )


def test_damage_is_warned_of_by_path_and_left_out(store: ResultStore) -> None:
    broken, without = sorted(store.runs.glob("*/*/*"))
    (broken / "record.json").write_text("{")
    (without / "images.csv").unlink()
    with pytest.warns(UserWarning, match=f"Left out: {broken}"):
        assert len(bench.results(store.root)) == 1
    with pytest.warns(UserWarning, match=f"the images of {without}"):
        assert bench.image_rows(store.root).empty


def test_the_command_writes_both(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(store.root)]) == 0
    assert len(pd.read_csv(store.root / "tables" / "results.csv")) == 2
    assert len(pd.read_csv(store.root / "tables" / "images.csv")) == 160
    assert main(["--out", str(store.root / "empty")]) == 2
    assert "No cell is stored" in capsys.readouterr().err


def test_parquet_where_pyarrow_is_there(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("pyarrow") is None:
        assert main(["--out", str(store.root), "--parquet"]) == 2
        assert "needs the package pyarrow" in capsys.readouterr().err
        return
    assert main(["--out", str(store.root), "--parquet"]) == 0
    for name, table in (("results", bench.results(store.root)), ("images", bench.image_rows(store.root))):
        read = pd.read_parquet(store.root / "tables" / f"{name}.parquet")
        assert len(table) and list(read.columns) == list(table.columns)
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_column_type=False)  # where texts are kept is each one's own
    first = (store.root / "tables" / "results.parquet").read_bytes()
    assert main(["--out", str(store.root), "--parquet"]) == 0
    assert (store.root / "tables" / "results.parquet").read_bytes() == first
