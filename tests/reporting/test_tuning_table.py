"""Untuned beside tuned: the numbers, the gains and the order are those of the stored cells, and tables say that they are tuned."""

import csv as csv_format
import io
from dataclasses import replace
from pathlib import Path

import pytest
from test_renderings import CAT, SAM, put
from test_spec import LORA, SETTINGS, SPEC

from bench.errors import RequestError
from bench.grid.spec import MethodChoice
from bench.grid.store import ResultStore
from bench.reporting.comparable import CellQuery, comparable_cells
from bench.reporting.figures import pictures
from bench.reporting.report import report
from bench.reporting.style import rendered
from bench.reporting.table import csv
from bench.reporting.tables import tables
from bench.reporting.tuning import tuned_pairs
from bench.tables import main

LORA_16 = replace(LORA, parameters=(("decoder", "sam"), ("rank", 16)), shown="decoder=sam,rank=16")
MONA = MethodChoice("mona", (("decoder", "sam"),), 1, "decoder=sam")
TUNED = replace(SETTINGS, trials=12, lr=0.02)
SCORES = {"whu": ((60.0, 70.0), (66.0, 68.0), (64.0, 74.0)), "sbu": ((40.0, 50.0), (41.0, 50.5), (42.0, 41.0))}


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """LoRA, CAT-SAM-T and Mona, untuned and tuned, on two data sets; LoRA's rank was chosen too."""
    store = ResultStore(tmp_path / "results")
    for dataset, scores in SCORES.items():
        for seed in (0, 1):
            for method, (untuned, tuned) in zip((LORA, CAT, MONA), scores, strict=True):
                put(store, untuned, dataset=dataset, method=method, seed=seed)
                now = replace(TUNED, tuned_as=LORA.label) if method == LORA else TUNED
                chosen = LORA_16 if method == LORA else method
                put(store, tuned, dataset=dataset, method=chosen, seed=seed, settings=now, protocol="paper(tuned=mine)")
        put(store, 35.0, dataset=dataset, method=SAM, seed=3407)
    return store


def lines(store: ResultStore, like: str = "tuning", query: CellQuery | None = None) -> list[dict[str, str]]:
    return [line for table in tables(store, query or CellQuery(), like) for line in csv_format.DictReader(io.StringIO(csv(table)))]


def test_the_table_has_both_and_the_gain_of_each(store: ResultStore) -> None:
    found = {(line["row"], line["dataset"] or line["group"], line["column"]): line for line in lines(store)}
    assert {row for row, *_ in found} == {"LoRA", "CAT-SAM-T", "Mona"}  # SAM is not tuned
    for (row, group), (untuned, tuned) in {
        ("LoRA", "whu"): (60.0, 70.0),
        ("CAT-SAM-T", "sbu"): (41.0, 50.5),
        ("Mona", "sbu"): (42.0, 41.0),
        ("LoRA", "average"): (50.0, 60.0),
    }.items():
        shown = [float(found[row, group, column]["value"]) for column in ("untuned", "tuned", "gain")]
        assert shown == pytest.approx([untuned, tuned, tuned - untuned], abs=0.2)
        gain = found[row, group, "gain"]
        assert float(gain["low"]) < shown[2] < float(gain["high"])
    assert {line["tuned"] for line in found.values()} == {"12 trials"}
    assert {line["protocol"] for line in found.values()} == {"paper and paper(tuned=mine)"}


def test_kendalls_tau_is_that_of_the_orders(store: ResultStore) -> None:
    (pair,) = tuned_pairs(comparable_cells(store, CellQuery()))
    whu, count = pair.tau("whu")  # 60, 66, 64 becomes 70, 68, 74: of three pairs, one keeps its order
    assert (whu, count) == (pytest.approx(-1 / 3), 3)
    assert pair.tau("sbu")[0] == pytest.approx(-1 / 3)  # 40, 41, 42 becomes 50, 50.5, 41
    assert pair.chosen == ((LORA.label, LORA_16.label),)
    (table,) = tables(store, CellQuery(), "tuning")
    said = " ".join(table.notes)
    assert "WHU Building -0.33 (3 methods)" in said and "the best of 12 trials of each method" in said and "(tuned/mine.toml)" in said
    assert "Parameters that trials chose: LoRA: LoRA (rank: 16)." in said


def test_every_other_table_says_tuned_and_never_mixes(store: ResultStore) -> None:
    by_protocol: dict[str, set[str]] = {}
    for line in lines(store, "plain"):
        by_protocol.setdefault(line["protocol"], set()).add(line.get("tuned", ""))
    assert by_protocol == {"paper": {""}, "paper(tuned=mine)": {"12 trials"}}
    assert main(["--like", "all", "--out", str(store.root)]) == 0
    assert list((store.root / "tables").glob("tuning_*tuned=mine*.md"))


@pytest.mark.slow
def test_the_report_has_table_and_figure(store: ResultStore) -> None:
    page = report(store)
    assert "untuned and tuned" in page and "mIoU untuned (open) and tuned (full)" in page
    (picture,) = [picture for picture in pictures(store, CellQuery()) if picture.name.startswith("tuning")]
    figure = picture.draw()
    assert [" ".join(ax.get_title().split()) for ax in figure.axes] == ["SBU Shadow", "WHU Building", "average"]
    assert {ax.get_xlabel() for ax in figure.axes} == {"mIoU (%)\ntau -0.33"}
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"untuned", "tuned, no worse", "tuned, worse"}
    assert len(rendered(figure, "svg")) > 1000
    first = [line.get_xdata() for line in figure.axes[1].lines if len(line.get_xdata()) == 2]
    assert sorted(tuple(round(float(x)) for x in ends) for ends in first) == [(60, 70), (64, 74), (66, 68)]


def test_a_store_without_a_pair_is_one_sentence(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    put(store, 60.0)
    with pytest.raises(RequestError, match="--like tuning needs cells of a protocol and of the same with tuned rates"):
        tables(store, CellQuery(), "tuning")
    put(store, 60.0, settings=TUNED, protocol="paper(tuned=mine)", method=CAT)  # no method in common
    with pytest.raises(RequestError, match="--like tuning"):
        tables(store, CellQuery(), "tuning")


def test_a_query_for_one_protocol_finds_its_pair(store: ResultStore) -> None:
    assert (
        len(tables(store, CellQuery(protocol="paper"), "tuning"))
        == len(tables(store, CellQuery(protocol="paper(tuned=mine)"), "tuning"))
        == 1
    )
    with pytest.raises(RequestError):
        tables(store, CellQuery(protocol="clean"), "tuning")
    assert SPEC.settings.keyed() == SETTINGS.keyed()
