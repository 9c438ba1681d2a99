"""The official draw among others, what varies with draws, and how many would be needed; the figures and the report of it."""

from pathlib import Path

import numpy as np
import pytest
from drawn_cells import fill
from test_renderings import CAT, put
from test_spec import LORA

from bench.grid.store import ResultStore
from bench.power import main as power
from bench.report import main as report
from bench.reporting.comparable import CellQuery
from bench.reporting.draws import Place
from bench.reporting.figures import pictures
from bench.reporting.table import Cell
from bench.reporting.tables import tables
from bench.tables import main


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    store = ResultStore(tmp_path_factory.mktemp("draws") / "results")
    fill(store, ("whu",), draws=8, seeds=2)
    return store


def rows(store: ResultStore, **query: str) -> dict[tuple[str, ...], tuple[Cell, ...]]:
    """The rows of the table of draws, by the methods that they are about."""
    return {tuple(name for _, name in row.about): row.cells for row in tables(store, CellQuery(**query), "draws")[0].rows}


def test_a_place_among_others_counts_equal_ones_by_half() -> None:
    place = Place.of({0: 2.0, 1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0})
    assert place.percentile == pytest.approx(100 * 1.5 / 4) and place.others.tolist() == [1, 2, 3, 4]
    assert Place.of({1: 1.0}).percentile is None and Place.of({0: 1.0}).percentile is None


def test_the_official_draw_is_placed_by_method_and_by_difference(store: ResultStore) -> None:
    table = store.records()
    means = {label: of.groupby("draw")["best.miou_all"].mean() for label, of in table[table["trains"]].groupby("label")}
    found = rows(store)
    assert list(found) == [("lora(decoder=sam)",), ("cat_sam_t",), ("cat_sam_t", "lora(decoder=sam)")]
    expected = {(label,): of for label, of in means.items()}
    expected["cat_sam_t", "lora(decoder=sam)"] = means["cat_sam_t"] - means["lora(decoder=sam)"]
    for key, of in expected.items():
        official, percentile, low, middle, high, _ = (cell.value for cell in found[key])
        others = of.drop(0)
        assert official == pytest.approx(of[0]) and percentile == pytest.approx(100 * (others < of[0]).mean())
        assert (low, middle, high) == pytest.approx((others.min(), others.median(), others.max()))


def test_methods_are_compared_as_asked_for(store: ResultStore) -> None:
    assert ("cat_sam_t", "lora(decoder=sam)") not in rows(store, against="lora(decoder=sam)")
    assert ("lora(decoder=sam)", "cat_sam_t") in rows(store, against="lora(decoder=sam)")
    assert ("sam", "cat_sam_t") in rows(store, against="sam")
    assert len([key for key in rows(store, against="pairs") if len(key) == 2]) == 1


def test_the_variance_of_a_run_is_split(store: ResultStore) -> None:
    table = tables(store, CellQuery(), "draws")[1]
    assert [row.heading for row in table.rows] == ["draw, of all methods alike", "method × draw", "seed, within these", "test images"]
    assert sum(row.cells[1].value or 0 for row in table.rows) == pytest.approx(100)
    draw, own, seed, images = (row.cells[0] for row in table.rows)
    for cell, truth in ((draw, 1.5), (own, 0.8), (seed, 0.4)):
        assert cell.low is not None and cell.high is not None and cell.low < truth < cell.high
    assert images.value is not None and images.value == pytest.approx(4 / np.sqrt(40), rel=0.3)
    assert any("2 methods, 8 draws × 2 seeds" in note for note in table.notes)


def test_one_seed_a_draw_is_said_and_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(tmp_path / "results")
    fill(store, ("whu",), draws=4, seeds=1)
    assert tables(store, CellQuery(), "draws")[1].rows[2].cells[0] == Cell(reason="not told apart")
    assert power(["lora", "cat_sam_t", "--out", str(store.root)]) == 0
    said = capsys.readouterr().out
    assert "One seed a draw is stored" in said and "× 3 " not in said


def test_power_says_the_fewest_runs_and_takes_a_difference(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert power(["cat_sam_t", "lora", "--out", str(store.root)]) == 0
    found = capsys.readouterr().out
    assert "Power to tell CAT-SAM-T from LoRA on WHU Building" in found and "80 % need" in found and "**" in found
    assert power(["cat_sam_t", "lora", "--difference", "0.01", "--out", str(store.root)]) == 0
    small = capsys.readouterr().out
    assert "80 % are out of reach of 200 draws" in small and "**" not in small


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora", "mona"], "Unknown stored method 'mona'. Known: cat_sam_t, lora(decoder=sam), sam."),
        (["lora", "lora"], "to be told from itself"),
        (["lora", "sam", "--difference", "0"], "--difference 0: points above 0"),
        (["lora", "sam", "--difference", "nan"], "--difference nan: points"),
    ],
)
def test_a_wrong_request_for_power_is_one_sentence(
    store: ResultStore, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert power([*words, "--out", str(store.root)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_fewer_than_two_draws_say_how_to_get_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(tmp_path / "results")
    for method in (LORA, CAT):
        put(store, 60.0, method=method)
    assert power(["lora", "cat_sam_t", "--out", str(store.root)]) == 2
    error = capsys.readouterr().err
    assert "fewer than 2 draws in common on every data set (whu has 1)" in error and "--draws 0:10" in error


def test_a_draw_of_its_own_images_replaces_the_one_of_an_earlier_version(tmp_path: Path) -> None:
    """Draw 2 had an image without objects; it was drawn anew, and the older cell is not counted beside it."""
    store = ResultStore(tmp_path / "results")
    for draw in range(4):
        put(store, 60.0 + draw, method=CAT, draw=draw)
    put(store, 80.0, method=CAT, draw=2, draw_revision=1)
    cells = rows(store)[("cat_sam_t",)]
    assert cells[4].value == pytest.approx(80, abs=1)
    (plain,) = tables(store, CellQuery(), "plain")
    assert any("Left out: cells of an older revision" in note for note in plain.notes) and plain.rows[0].cells[2].n == 4


def test_all_formats_figures_and_the_report_have_both_sections(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    for like in ("draws", "aggregates"):
        assert main(["--like", like, "--format", "md,csv,latex,html", "--out", str(store.root)]) == 0
    kinds = {picture.name.partition("_")[0] for picture in pictures(store, CellQuery())}
    assert {"draws", "iqm", "profile", "improvement", "ranks"} <= kinds
    assert report(["--out", str(store.root)]) == 0
    page = (store.root / "report" / "index.html").read_text()
    parts = {title: page.split(f">{title}</h2>")[1].split("</section>")[0] for title in ("Tables", "Draws", "Aggregates", "Figures")}
    assert parts["Draws"].count('<figure class="table"') == 2 and parts["Draws"].count("<img") == 1
    assert parts["Aggregates"].count('<figure class="table"') == 2 and parts["Aggregates"].count("<img") == 4
    assert "The official draw" not in parts["Tables"] + parts["Figures"] and "Aggregates of" not in parts["Tables"]
