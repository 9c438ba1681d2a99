"""Figures: each is drawn where its cells are, the same bytes twice, and the front and the ranks are what they say."""

from pathlib import Path

import pytest
from test_renderings import CAT, SAM, put

from bench.figures import main
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery
from bench.reporting.figures import pareto, pictures
from bench.reporting.style import METADATA, rendered


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def test_a_front_has_only_what_no_other_beats() -> None:
    assert pareto([(3, 70), (1, 60), (2, 50), (3, 65), (4, 70)]) == [(1, 60), (3, 70)]
    assert pareto([]) == []


def test_every_figure_is_written_in_three_formats_and_twice_the_same(store: ResultStore) -> None:
    for method in (SAM, CAT):
        for dataset in ("whu", "sbu"):
            put(store, 70.0 + len(method.name), dataset=dataset, method=method)
    put(store, 90.0, shots=16, method=CAT)
    for method in (SAM, CAT):
        store.keep_cost(method, "vit_l", "a machine", {"peak_memory_mb": 700.0})
    assert main(["--out", str(store.root)]) == 0
    first = {path.name: path.read_bytes() for path in (store.root / "figures").iterdir()}
    kinds = {name.partition("_")[0] for name in first}
    assert kinds == {"bars", "parameters", "memory", "time", "curves", "images", "ranks", "shots"}
    assert {name.rpartition(".")[2] for name in first} == set(METADATA)
    for picture in pictures(store, CellQuery()):
        if picture.name.startswith(("bars_vit_l_abababab_1shot", "images")):
            figure = picture.draw()
            assert {form: first[f"{picture.name}.{form}"] for form in METADATA} == {form: rendered(figure, form) for form in METADATA}


def test_what_has_no_cells_is_not_drawn(store: ResultStore) -> None:
    put(store, 70.0)  # the memory that its record tells is the whole worker's
    assert {picture.name.partition("_")[0] for picture in pictures(store, CellQuery())} == {"bars", "parameters", "time", "curves"}


def test_an_empty_store_is_one_sentence(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(store.root)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
