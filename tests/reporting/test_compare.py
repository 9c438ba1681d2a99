"""Two cells, two folders or two commits: what differs, by how much, and whether it is luck."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_renderings import CAT, put
from test_spec import SETTINGS

from bench.compare import main
from bench.grid.store import ResultStore


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_two_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(tmp_path)
    a = store.folder(put(store, 70.0))
    b = store.folder(put(store, 80.0, settings=replace(SETTINGS, lr=1e-4)))
    out = said(capsys, a, b)
    assert "| spec.settings.lr |" in out and "0.001 | 0.0001 |" in out
    assert "one run cannot tell" in out and "spec.settings.epochs" not in out


def test_two_folders_pair_by_what_the_cells_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, theirs = ResultStore(tmp_path / "a"), ResultStore(tmp_path / "b")
    for seed in range(3):
        put(mine, 70.0, seed=seed)
        put(theirs, 70.0, seed=seed, checkpoint_sha256="cd" * 32)
        put(mine, 70.0, dataset="sbu", seed=seed)
        put(theirs, 80.0, dataset="sbu", seed=seed, checkpoint_sha256="cd" * 32)
    put(theirs, 10.0, method=CAT)
    out = said(capsys, mine.root, theirs.root)
    assert "pairs 6" in out and "A is lower" in out and "inside the noise" in out and "cat_sam_t" not in out
    assert "| spec.checkpoint_sha256 |" in out


def test_cells_of_other_data_files_are_not_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for number, fingerprint in enumerate(("aa", "bb", "aa")):
        store = ResultStore(tmp_path / str(number))
        folders.append(store.folder(put(store, 70.0 + number)))
        content = json.loads((folders[-1] / "record.json").read_text())
        content["provenance"] = {"data": {"fingerprint": fingerprint}}
        (folders[-1] / "record.json").write_text(json.dumps(content))
    out = said(capsys, folders[0], folders[1])
    assert "not tested: other images or data files" in out and "| provenance.data.fingerprint |" in out
    assert "not tested" not in said(capsys, folders[0], folders[2])


def test_two_commits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(tmp_path)
    for commit, protocol in (("a" * 40, "paper"), ("b" * 40, "clean")):
        folder = store.folder(put(store, 70.0, protocol=protocol))
        content = json.loads((folder / "record.json").read_text())
        content["provenance"] = {"git": {"commit": commit, "dirty": False}}
        (folder / "record.json").write_text(json.dumps(content))
    out = said(capsys, "a" * 8, "b" * 8, "--out", tmp_path)
    assert "| provenance.git.commit |" in out and "| spec.protocol " in out


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(tmp_path / "a")
    cell = store.folder(put(store, 70.0))
    put(store, 60.0, method=CAT)
    other = ResultStore(tmp_path / "b")
    put(other, 1.0, dataset="sbu")
    for a, b, why in (
        (cell, "nowhere", "Cannot compare 'nowhere'"),
        (cell, "0" * 40, "No cell is stored below results by commit"),
        (store.root, other.root, "has data set, method, shots, draw and seed in common"),
    ):
        assert main([str(a), str(b)]) == 2
        shown = capsys.readouterr()
        assert why in shown.err and shown.err.count("\n") == 1 and not shown.out
    (cell / "images.csv").unlink()
    assert "not tested" in said(capsys, cell, cell)
    (cell / "record.json").write_text("{")
    assert main([str(cell), str(cell)]) == 2
