"""Aggregates against `rliable`'s numbers on the same matrix, and what tables and figures show of them."""

from pathlib import Path

import numpy as np
import pytest
from drawn_cells import fill
from test_renderings import CAT, put

from bench.errors import RequestError
from bench.grid.published import PUBLISHED, read_published
from bench.grid.store import ResultStore
from bench.reporting.aggregate_figures import cliques
from bench.reporting.aggregates import (
    Scores,
    _not_normalised,
    above,
    aggregated,
    improvement,
    improvement_interval,
    interval,
    iqm,
    ranking,
    resampled,
)
from bench.reporting.comparable import CellQuery, comparable_cells
from bench.reporting.labels import Labels
from bench.reporting.table import markdown
from bench.reporting.tables import tables

PAPER = read_published(PUBLISHED["1"])
X = np.array([[70.4, 58.4, 79.5], [72.8, 63.3, 80.2], [70.9, 59.4, 81.5], [75.3, 61.5, 77.5], [70.1, 64.2, 80.4], [68.5, 60.8, 77.7]])
Y = np.array([[70.4, 61.0, 75.6], [72.1, 61.9, 75.8], [71.8, 63.7, 73.7], [70.5, 60.0, 76.7], [68.4, 62.0, 76.9]])
TAUS = [60.0, 62.0, 70.0, 73.0, 78.0, 80.0, 82.0]
# rliable 1.2.0 on X and Y, 2000 repetitions after np.random.seed(0). It is no dependency: it fails with arch 8, which it needs, unless the
# argument `random_state` that it passes on is dropped, as it was for these numbers.
RLIABLE = {
    "iqm": (71.07000000000001, 69.96000000000001, 72.25025),
    "mean": (70.68888888888888, 69.84986111111111, 71.58402777777779),
    "improvement": (0.65, 0.48888888888888893, 0.8111111111111112),
    "profile": [0.8888888888888888, 0.7777777777777778, 0.6111111111111112, 0.3888888888888889, 0.2222222222222222, 0.16666666666666666, 0],
    "low": [0.7777777777777778, 0.6666666666666666, 0.5, 0.3333333333333333, 0.1111111111111111, 0.05555555555555555, 0.0],
    "high": [1.0, 0.8888888888888888, 0.6666666666666666, 0.5, 0.3333333333333333, 0.2777777777777778, 0.0],
}
RUNS, OTHERS = X[:, None], Y[:, None]  # (units, runs, data sets)


def picks(*units: int) -> list[np.ndarray]:
    """The units that rliable's bootstrap takes, a method after another in each repetition."""
    rng = np.random.RandomState(0)
    drawn = [[rng.choice(n, (n, 3)) for n in units] for _ in range(2000)]
    return [np.stack([of[i] for of in drawn]) for i in range(len(units))]


def test_point_estimates_and_intervals_are_rliables() -> None:
    (chosen,) = picks(6)
    for name, statistic in (("iqm", iqm), ("mean", lambda scores: scores.mean(axis=(-3, -2, -1)))):
        found = interval(statistic, RUNS, chosen)
        assert (float(statistic(RUNS)), found.low, found.high) == pytest.approx(RLIABLE[name], abs=1e-6)
    chosen_x, chosen_y = picks(6, 5)
    found = improvement_interval(RUNS, OTHERS, (chosen_x, chosen_y))
    assert (float(improvement(RUNS, OTHERS)), found.low, found.high) == pytest.approx(RLIABLE["improvement"], abs=1e-6)


def test_the_performance_profile_is_rliables() -> None:
    (chosen,) = picks(6)
    low, high = np.quantile(above(resampled(RUNS, chosen), TAUS), (0.025, 0.975), axis=0)
    for found, name in ((above(RUNS, TAUS), "profile"), (low, "low"), (high, "high")):
        assert found == pytest.approx(RLIABLE[name], abs=1e-6)


def test_draws_are_resampled_with_all_their_seeds() -> None:
    """Four draws whose ten seeds agree tell as much as four runs."""
    rng = np.random.default_rng(0)
    draws = rng.normal(60, 5, (4, 1, 2))
    many, few = interval(iqm, np.repeat(draws, 10, axis=1)), interval(iqm, draws)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))


def test_methods_are_joined_where_their_ranks_are_near() -> None:
    assert cliques([1.0, 1.5, 2.4, 4.0], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1.0, 3.0], 1.0) == [] and cliques([1.0, 1.2, 1.4], 1.0) == [(0, 2)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    store = ResultStore(tmp_path_factory.mktemp("aggregates") / "results")
    fill(store, ("whu", "sbu"), draws=4, seeds=2)
    return store


def test_the_tables_have_every_method_and_say_what_they_mean(store: ResultStore) -> None:
    table, profile = tables(store, CellQuery(), "aggregates")
    rows = {row.about[0][1]: row.cells for row in table.rows}
    (comparable,) = comparable_cells(store, CellQuery())
    scores, ranked = aggregated(comparable, PAPER), ranking(comparable, PAPER, None)
    assert scores is not None and ranked is not None and scores.units == "draw" and scores.of["cat_sam_t"].shape == (4, 2, 2)
    assert scores.zero_shot == "sam" and scores.best == "cat_sam_t" and list(rows) == list(scores.of)
    assert rows["sam"][1].value == pytest.approx(0.0) and rows["sam"][0].low is None
    assert rows["cat_sam_t"][0].value == pytest.approx(float(iqm(scores.of["cat_sam_t"])))
    assert rows["cat_sam_t"][2].reason == "-" and 0 <= rows["lora(decoder=sam)"][2].value < 50  # type: ignore[operator]
    assert [rows[label][3].value for label in ("sam", "cat_sam_t")] == [3.0, 1.0]
    assert scores.normalised["cat_sam_t"].mean() == pytest.approx(100)
    assert "0 is SAM and 100" in markdown(table) and f"less than {ranked.critical:.2f}, Nemenyi's" in markdown(table)
    assert [column.name for column in profile.columns] == ["> 50", "> 60", "> 70", "> 80", "> 90"] and len(profile.rows) == 3


def test_a_method_that_lacks_a_data_set_is_left_out_by_name(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    fill(store, ("whu", "sbu"), draws=2, seeds=1)
    put(store, 99.0, method=CAT.__class__("mine", (), 1, ""), dataset="whu")
    (table, _) = tables(store, CellQuery(), "aggregates")
    assert "Left out: mine, which lacks sbu." in table.notes and len(table.rows) == 3


def test_one_data_set_is_ranked_over_its_draws(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    fill(store, ("whu",), draws=3, seeds=1)
    (table, _) = tables(store, CellQuery(), "aggregates")
    assert any(note.startswith("mean rank: over 3 draws of WHU Building;") for note in table.notes)
    assert any(note.startswith("Intervals of fewer than 10 draws are too short") for note in table.notes)


def test_one_run_of_each_has_no_aggregates_and_says_what_is_needed(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    put(store, 60.0, method=CAT)
    for like, needed in (("aggregates", "same draws or seeds"), ("draws", "--draws 0:10")):
        with pytest.raises(RequestError, match=f"Nothing to show: --like {like} needs .*{needed}"):
            tables(store, CellQuery(), like)


def test_scores_are_not_normalised_by_a_gain_of_tenths() -> None:
    """Half a point above zero-shot on one data set would count as a hundred."""

    def scores(best: float) -> Scores:
        of = {"sam": np.array([[[50.0, 50.0]]]), "lora": np.array([[[60.0, best]], [[62.0, best]]])}
        return Scores(("whu", "sbu"), of, {}, "draw", "sam")

    assert scores(51.0).normalised["lora"].mean() == pytest.approx(100) and not _not_normalised(scores(51.0), Labels(PAPER))
    assert not scores(50.5).normalised
    assert _not_normalised(scores(50.5), Labels(PAPER)) == (
        "Not normalised: the best method must be 1 point or more above zero-shot, and is 0.5 on sbu.",
    )
