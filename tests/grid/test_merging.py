"""Cells of several folders in one: what agrees is copied, once; what does not is named, and nothing that is there is changed."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_renderings import CAT, LORA, SAM, put
from test_spec import SPEC

from bench import image_rows, merge, results, tables
from bench.grid.store import Record, ResultStore


def bytes_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file() and "cache" not in path.parts}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """A colleague's LoRA and SAM, and mine of CAT-SAM and SAM."""
    a, b = ResultStore(tmp_path / "a"), ResultStore(tmp_path / "b")
    put(a, 60.0, method=LORA)
    put(b, 70.0, method=CAT)
    for store in (a, b):
        put(store, 50.0, method=SAM)
    return a.root, b.root


def merged(*words: object) -> int:
    return merge.main([str(word) for word in words])


def test_cells_of_two_places_stand_in_one_table(two, tmp_path, capsys) -> None:
    before = [bytes_of(root) for root in two]
    assert merged(*two, "--into", tmp_path / "c") == 0
    assert "3 cells copied" in (said := capsys.readouterr().out) and "1 was there twice" in said
    assert [bytes_of(root) for root in two] == before
    assert sorted(results(tmp_path / "c")["method"]) == ["cat_sam_t", "lora", "sam"]
    after = bytes_of(tmp_path / "c")
    assert merged(*two, "--into", tmp_path / "c") == 0 and bytes_of(tmp_path / "c") == after
    assert "0 cells copied" in capsys.readouterr().out
    assert tables.main(["--out", str(tmp_path / "c"), "--format", "md"]) == 0
    one = capsys.readouterr().out
    assert tables.main(["--out", *map(str, two), "--format", "md"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")] == [
        line for line in one.splitlines() if line.startswith("|")
    ]
    assert len(results(*two)) == 3 and len(image_rows(*two)) == len(image_rows(tmp_path / "c"))


def test_what_does_not_agree_is_named_and_not_copied(two, tmp_path, capsys) -> None:
    a, b = two
    spec = put(ResultStore(b), 61.0, method=LORA)  # a's cell with another number
    moved = next((a / "runs").glob("*/sam/*"))
    rows = pd.read_csv(moved / "images.csv")
    rows.assign(intersection=rows["intersection"] - 1).to_csv(moved / "images.csv", index=False)  # no longer what its record says
    assert merged(a, b, "--into", tmp_path / "c") == 1
    said = capsys.readouterr().out
    assert f"({spec.key}): best miou_all is 60" in said and str(moved / "record.json") in said and "by its images.csv" in said
    assert sorted(results(tmp_path / "c")["method"]) == ["cat_sam_t", "sam"]  # SAM from the other place


def test_other_data_files_are_a_conflict_of_a_cell_and_a_note_between_cells(two, tmp_path, capsys) -> None:
    a, b = (ResultStore(root) for root in two)
    for store, files in ((a, "a" * 64), (b, "b" * 64)):
        spec = replace(SPEC, seed=7)
        record = a.read(a.folder(replace(SPEC, method=LORA)))
        other = Record(spec, record.scores, record.cost, {"data": {"fingerprint": files}})
        store.save(other, pd.read_csv(a.folder(record.spec) / "images.csv"), pd.DataFrame(), None)
    assert merged(*two, "--into", tmp_path / "c") == 1
    assert "its data files differ between" in capsys.readouterr().out
    shutil.rmtree(b.folder(spec))
    different = Record(replace(spec, seed=8), record.scores, record.cost, {"data": {"fingerprint": "b" * 64}})
    b.save(different, pd.read_csv(a.folder(record.spec) / "images.csv"), pd.DataFrame(), None)
    assert merged(*two, "--into", tmp_path / "d") == 0
    assert "whu: cells of different data files (aaaaaaaa in" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("a", "absent"), ("a", "b", "--into", "a")])
def test_a_wrong_merge_is_one_sentence(two, tmp_path, words, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert merged(*words, *(() if "--into" in words else ("--into", "c"))) == 2
    said = capsys.readouterr().err
    assert ("No cell is stored below absent/runs" in said or "a cannot be merged into itself" in said) and not (tmp_path / "c").exists()
