"""Tables by other metrics than the usual one: their numbers, which direction is better, what cannot be computed, and what was published."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from drawn_cells import fill
from test_renderings import CAT, LORA, put

from bench.errors import RequestError
from bench.grid.metrics import METRICS, ImageRow, Images
from bench.grid.published import published_for
from bench.grid.rows import IMAGES, read_image_rows
from bench.grid.store import ResultStore
from bench.reporting.aggregates import aggregated
from bench.reporting.comparable import CellQuery, comparable_cells
from bench.reporting.differences import paired, results, side
from bench.reporting.figures import pareto, pictures
from bench.reporting.pivot import Pivot
from bench.reporting.power import power_tables
from bench.reporting.statistics import Counts, Pooled
from bench.reporting.table_statistics import linear_parts, table_statistics
from bench.reporting.tables import pivoted, tables

SIZE = 10_000


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "results")


def with_sizes(store):
    """Gives the cells' rows what BER needs."""
    for path in store.runs.rglob(IMAGES):
        frame = pd.read_csv(path)
        frame.assign(pixels=SIZE).to_csv(path, index=False)


def test_less_is_better_where_it_is(store):
    fill(store, ("whu", "sbu"), draws=4, seeds=2)
    with pytest.raises(RequestError, match=r"ber cannot be computed from \d+ of \d+ cells, whose images.csv has no `pixels`: such as "):
        pivoted(store, CellQuery(), Pivot.of("method", "dataset", "ber"))
    with_sizes(store)
    (table,) = tables(store, CellQuery(metric="ber"))
    assert table.title == "Balanced error rate (%)" and dict(table.context)["metric"] == "ber, lower is better"
    rows = {dict(row.about)["method"]: row.cells for row in table.rows}
    for column, dataset in ((2, "sbu"), (3, "whu")):
        values = {label: cells[column].value for label, cells in rows.items()}
        assert values[CAT.label] < values[LORA.label] < values["sam"]
        cells = [path.parent for path in (store.runs / dataset).glob("lora*/*/record.json")]
        found = [METRICS["ber"].value(read_image_rows(cell)["best"]) for cell in cells]
        assert values[LORA.label] == pytest.approx(np.mean(found)) and len(found) == 8
        assert rows[LORA.label][column].low < values[LORA.label] < rows[LORA.label][column].high
        assert rows[CAT.label][column].mark == "best" and not rows["sam"][column].mark

    (comparable,) = comparable_cells(store, CellQuery(metric="ber"))
    known = table_statistics(comparable, ["whu"], averaged=False)
    assert {found.b for found in known.comparisons()} == {CAT.label}
    assert all(found.difference.value > 0 for found in known.comparisons())
    scores = aggregated(comparable, published_for("1"))
    assert scores.best == CAT.label and scores.normalised[CAT.label].mean() == pytest.approx(100)
    for like in ("comparisons", "draws", "aggregates", "rules", "selections"):
        assert tables(store, CellQuery(metric="ber"), like)
    (plain,) = tables(store, CellQuery(metric="class_miou"), "plain")
    assert not [note for note in plain.notes if "No interval" in note or "mIoU is pooled" in note]  # no score has none either
    assert sum("class_miou cannot be computed from" in note for note in plain.notes) == 1
    (aggregates, _) = tables(store, CellQuery(metric="ber"), "aggregates")
    ranks = {dict(row.about)["method"]: row.cells[3].value for row in aggregates.rows}
    assert ranks[CAT.label] == 1 and ranks["sam"] == 3
    assert power_tables(store, CellQuery(metric="ber"), CAT.label, LORA.label)
    a, b = (side(str(next((store.runs / "whu").glob(f"{of.name}*/*/record.json")).parent), store.root) for of in (CAT, LORA))
    compared = results(paired(a, b), None, "all", "ber")
    assert compared.title == "Balanced error rate (%)" and compared.rows[0].cells[2].value < 0


def test_a_metric_of_all_objects_together_has_no_interval_and_says_so(store):
    for draw in range(2):
        for method in (CAT, LORA):
            put(store, 70.0, method=method, draw=draw)
    for path in store.runs.rglob(IMAGES):
        frame = pd.read_csv(path)
        frame.assign(instances="1:1000:900:0.9:1=850").to_csv(path, index=False)
    said, query = "ap is of all images' objects together", CellQuery(metric="ap")
    for (table,) in (tables(store, query), pivoted(store, CellQuery(), Pivot.of("method", "dataset", "ap"))):
        shown = [cell for row in table.rows for cell in row.cells if cell.n == 2]
        assert len(shown) == 2 and all(cell.value > 50 and cell.low is None and not cell.mark for cell in shown)
        assert any(note.startswith(said) and "no interval" in note for note in table.notes)
    with pytest.raises(RequestError, match=f"{said}: it has no interval, and so no power"):
        power_tables(store, query, CAT.label, LORA.label)
    a, b = (side(str(next(store.runs.rglob(f"{of.name}*/*/record.json")).parent), store.root) for of in (CAT, LORA))
    assert any("nothing is tested by it" in note for note in results(paired(a, b), None, "all", "ap").notes)


def test_a_mean_of_ratios_has_its_value_and_the_jackknifes_interval():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(10, 500, (2, 60))
    both = (np.minimum(truth, predicted) * rng.uniform(0.5, 1, 60)).astype(int)
    rows = [
        ImageRow(str(i), 1, int(b), int(t + p - b), int(t), int(p), 1000)
        for i, (b, t, p) in enumerate(zip(both, truth, predicted, strict=True))
    ]
    for name in ("ber", "two_class_miou", "mean_image_two_class_miou", "mean_image_iou", "miou"):
        metric = METRICS[name]
        parts = linear_parts(metric.terms(Images.of(rows), 0.0), len(rows))
        counts = Counts(((0, 0),), tuple(row.name for row in rows), parts[None, :, 0], parts[None, :, 1])
        found = Pooled.of(counts)
        assert float(found.value) == pytest.approx(metric.value(Images.of(rows)))
        without = [metric.value(Images.of(rows[:i] + rows[i + 1 :])) for i in range(len(rows))]
        jackknife = (len(rows) - 1) / len(rows) * np.square(np.array(without) - np.mean(without)).sum()
        assert float(found.images_variance()) == pytest.approx(jackknife, rel=0.05)
    cans = np.array([5.0, 3.0, 0.0]), np.array([9.0, 9.0, 0.0])
    alone, both = (
        linear_parts({"can": cans, "bottle": (np.array(part), np.array(whole))}, 3)
        for part, whole in (([0.0, 1.0, 0.0], [0.0, 4.0, 0.0]), ([0.0, 1.0, 2.0], [0.0, 4.0, 4.0]))
    )
    assert not alone.any() and both[:, 1].all()  # one image says nothing of how bottles vary, and an interval without them were too short


@pytest.mark.parametrize(("shots", "sbu"), [(16, 4.04), ("full", 2.54)])
def test_every_published_number_stands_beside_ours_with_its_metric_or_the_reason(store, shots, sbu):
    for dataset in ("whu", "kvasir", "sbu", "jsrt", "fls", "hrsid"):
        put(store, 70.0, method=CAT, dataset=dataset, shots=shots)
    with_sizes(store)
    (table,) = tables(store, CellQuery(), "paper")
    shown = {(column.group, column.name): cell for column, cell in zip(table.columns, table.rows[0].cells, strict=True)}
    assert shown["SBU Shadow, ber (lower is better)", "published"].value == sbu
    assert shown["SBU Shadow, ber (lower is better)", "Δ"].value is not None
    assert shown["WHU Building", "Δ"].value == pytest.approx(70 - published_for(str(shots)).of("cat_sam_t", "whu").value, abs=0.5)
    reasons = {group: cell.reason for (group, name), cell in shown.items() if name == "Δ" and cell.value is None}
    assert reasons["Kvasir-SEG"] == "metric unknown" and sum(name == "published" and cell.value for (_, name), cell in shown.items()) > 0
    told = " ".join(table.notes)
    assert "Kvasir rises from 85 to 93" in told and "the split and the few-shot images are not published" in told
    assert "ap cannot be computed from" in told and "class_miou cannot be computed from" in told
    assert "class_miou: The mean IoU of the classes but the background" in told and "ber: Half the sum" in told
    put(store, 70.0, method=CAT, dataset="whu", shots=shots, protocol="smoke")
    (smoke,) = tables(store, CellQuery(protocol="smoke"), "paper")
    assert smoke.rows[0].cells[1].value and smoke.rows[0].cells[2].reason == "other protocol"
    published = published_for(str(shots))
    assert len(published.others) == 6 * 2 + 6 and published.of("sam", "sbu").metric == "miou" != published.metric("sbu")
    assert published.of("cat_sam_a", "hrsid").value == {16: 45.7, "full": 52.9}[shots]


def test_the_one_shot_picture_has_two_rows_of_twenty_shots():
    one = published_for("1")
    assert [(one.others[name, "kvasir"].value, one.others[name, "kvasir"].differs) for name in ("spfs_sam", "samed")] == [
        (53.4, "20 shots"),
        (51.7, "20 shots"),
    ]
    assert one.of("cat_sam_t", "sbu").value == 78.0 and one.metric("sbu") == "miou" and one.metric("hrsid") == "ap"
    assert replace(one, others={}).datasets == ("whu", "kvasir", "sbu")


def test_figures_are_of_the_metric_that_was_asked_for(store):
    fill(store, ("whu", "sbu"), draws=4, seeds=2)
    with_sizes(store)
    drawn = {of.name.partition("_")[0]: of for of in pictures(store, CellQuery(metric="ber"))}
    words = {name: " ".join(ax.get_xlabel() + ax.get_ylabel() for ax in of.draw().axes) for name, of in drawn.items()}
    assert not [name for name, text in words.items() if "mIoU" in text] and not any("mIoU" in of.caption for of in drawn.values())
    assert all("alanced error rate" in words[name] for name in ("bars", "draws", "profile"))
    assert pareto([(1, 30.0), (2, 40.0), (3, 20.0)], sign=-1) == [(1, 30.0), (3, 20.0)]
