"""Statistics against closed forms and simulated truth."""

import numpy as np
import pytest
from scipy import stats

from bench import ROOT
from bench.check import main
from bench.grid.registry import DATASETS, METHODS
from bench.reporting import coverage
from bench.reporting.coverage import FALSE, HELD, UNEQUAL, World, rates
from bench.reporting.statistics import (
    ALPHA,
    Column,
    Counts,
    Estimate,
    Pair,
    Pooled,
    averaged,
    critical_difference,
    differences,
    effect_size,
    holm,
    mean_ranks,
    pooled,
)


def counts(intersections: np.ndarray, unions: np.ndarray, draws: int = 1, trains: bool = True) -> Counts:
    """Counts with made-up names."""
    runs, images = np.shape(intersections)
    names = tuple((i % draws, i // draws) for i in range(runs))
    rows = np.asarray(intersections, float), np.asarray(unions, float)
    return Counts(names, tuple(f"image {i}" for i in range(images)), *rows, trains)


def alike(values: list[float], images: int = 30, **more: int) -> Pooled:
    """A method whose runs have these values on every image."""
    return Pooled.of(counts(np.tile(np.array(values)[:, None], images), np.full((len(values), images), 100.0), **more))


def simulated(rng: np.random.Generator, runs: int, images: int, shift: float = 0.0) -> Counts:
    """Images of random size and difficulty, which all runs share, and runs that are better or worse by a random amount."""
    sizes = rng.gamma(4.0, 100.0, images)
    iou = 60 + shift + rng.normal(0, 12, images) + rng.normal(0, 1, (runs, 1)) + rng.normal(0, 3, (runs, images))
    return counts(iou / 100 * sizes, np.broadcast_to(sizes, iou.shape))


WORLDS = [World(5, 5, 9, 1), World(3, 5, 9, 1), World(2, 1, 10, 0), World(2, 2, 1, 1), World(1, 2, 4, 1), World(1, 1, 4, 4)]


@pytest.mark.parametrize("world", WORLDS)
def test_intervals_hold_and_equal_methods_pass_where_seeds_are_nested_in_draws(world: World) -> None:
    found = rates(world, 2000)
    assert HELD[0] <= found.held <= HELD[1]
    assert np.isnan(found.false) if world.draws == world.seeds == 1 else FALSE[0] <= found.false <= FALSE[1]


def test_six_methods_of_a_column_make_two_seeds_useful() -> None:
    alone, together = rates(World(1, 2, 0, 1), 1000), rates(World(1, 2, 0, 1, std=(1.0,) * 6), 750)
    assert together.half < 0.75 * alone.half and together.half < 1.4 * 2.0  # 2: what images alone give
    unequal = rates(World(1, 3, 0, 1, std=UNEQUAL), 750)
    assert HELD[0] <= together.held <= HELD[1] and HELD[0] <= unequal.held <= HELD[1] and unequal.worst > 85
    assert together.any_false <= FALSE[1] and unequal.any_false <= FALSE[1]


def test_draws_that_move_all_methods_together_are_not_taken_for_many() -> None:
    found = rates(World(2, 1, 3, 0.3, common=0.9, std=(1.0,) * 6), 1500)
    assert found.held >= HELD[0]


@pytest.mark.slow
def test_the_command_simulates_and_agrees_with_its_committed_table(monkeypatch, capsys) -> None:
    """In some designs of every table; each world has random numbers of its own, so that a row does not depend on the others."""
    monkeypatch.setattr(coverage, "DESIGNS", ((1, 1), (1, 2), (1, 5), (2, 1), (5, 1)))
    monkeypatch.setattr(coverage, "DESIGNS_OF_SIX", ((1, 2), (2, 3)))
    monkeypatch.setattr(coverage, "POWER_DESIGNS", ((2, 1), (3, 3), (10, 1)))
    assert main(["statistics"]) == 0
    said, table = capsys.readouterr().out, (ROOT / "results" / "studies" / "statistics.md").read_text()
    made, committed = ([line.split() for line in text.splitlines()] for text in (said, table))
    assert sum("x" in line[:3] for line in made) == 3 + 5 + (2 + 3) + 3  # headings, and rows
    assert [line for line in made if line not in committed and not line[0].startswith("|:")] == []


def test_no_method_or_data_set_is_called_like_the_command_that_simulates() -> None:
    assert "statistics" not in (*METHODS.names(), *DATASETS.names())


def test_seeds_of_one_draw_are_students_t() -> None:
    found = Column({"a": alike([50.0, 60.0, 70.0])}).mean("a").interval()
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 60, 10 / np.sqrt(3)))


def test_draws_and_not_runs_are_what_repeats() -> None:
    nested = alike([50.0, 60.0, 70.0, 52.0, 62.0, 72.0], draws=3)  # three draws of two seeds
    assert nested.units == (0, 1, 2)
    found = Column({"a": nested}).mean("a").interval()
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 61, 10 / np.sqrt(3)))


def test_draws_of_unequal_numbers_of_seeds_keep_the_mean_over_runs() -> None:
    runs = ((0, 0), (0, 1), (0, 2), (1, 0))
    rows = np.tile(np.array([[50.0], [51.0], [52.0], [70.0]]), 30)
    method = Pooled.of(Counts(runs, tuple(map(str, range(30))), rows, np.full_like(rows, 100.0)))
    found = Column({"a": method}).mean("a")
    assert found.value == pytest.approx(55.75) and found.interval().holds(55.75)


def test_images_alone_are_students_t_for_equal_sizes() -> None:
    ious = np.random.default_rng(11).normal(60, 10, (1, 25))
    found = Column({"a": Pooled.of(counts(ious, np.full((1, 25), 100.0)))}).mean("a").interval()
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 24, ious.mean(), ious.std(ddof=1) / 5))


def test_what_images_do_to_each_run_differently_counts_once() -> None:
    rng = np.random.default_rng(3)
    runs = counts(60 + rng.normal(0, 5, (200, 100)), np.full((200, 100), 100.0))  # no run is better, no image harder
    found = Column({"a": Pooled.of(runs)}).mean("a")
    assert float(found.of_runs) == pytest.approx(25 / 100 / 200, rel=0.3) and float(found.of_images) < 2e-4


def test_the_jackknife_is_the_one_by_leaving_out() -> None:
    made = simulated(np.random.default_rng(1), 1, 20)
    left = [100 * np.delete(made.intersections, i).sum() / np.delete(made.unions, i).sum() for i in range(20)]
    whole = float(pooled(made)[0])
    assert float(Pooled.of(made).images_variance()) == pytest.approx(19 / 20 * np.square(np.array(left) - whole).sum())


def test_methods_with_few_runs_share_their_variance_and_two_do_not() -> None:
    rng = np.random.default_rng(0)
    methods = {str(m): alike(list(60 + rng.normal(0, 1, 2))) for m in range(8)}
    own = {name: float(np.square(of.deviations).sum()) for name, of in methods.items()}
    shared, two = Column(methods), Column({name: methods[name] for name in ("0", "1")})
    for name in methods:
        assert float(shared.mean(name).runs_df) > 3
        assert abs(np.log(2 * shared.mean(name).of_runs / np.mean(list(own.values())))) <= abs(
            np.log(own[name] / np.mean(list(own.values())))
        )
    assert float(two.mean("0").of_runs) == pytest.approx(own["0"] / 2) and float(two.mean("0").runs_df) == 1


def test_what_trains_nothing_has_images_alone_and_compares_with_what_is_trained() -> None:
    frozen = Pooled.of(counts(np.full((5, 30), 50.0), np.full((5, 30), 100.0), trains=False))
    column = Column({"sam": frozen, "lora": alike([60.0, 61.0, 62.0]), "once": alike([70.0])})
    assert frozen.units == () and float(column.mean("sam").of_runs) == 0
    difference, lora = column.difference("lora", "sam"), column.mean("lora")
    assert float(difference.value) == pytest.approx(11) and float(difference.of_runs) == pytest.approx(float(lora.of_runs))
    assert column.tells("lora", "sam") and not column.tells("once", "sam")


def test_one_run_has_no_p() -> None:
    column = Column({"a": alike([50.0]), "b": alike([70.0])})
    (found,) = differences([Pair(column.difference("a", "b"), column.tells("a", "b"), 0.0, 1, 30)])
    assert found.p is None and not found.significant and found.value == pytest.approx(-20)


@pytest.mark.parametrize("df", [1.0, 1.3, 3.0])
@pytest.mark.parametrize("level", [0.05, 0.02, 0.003, 1e-4])
def test_a_test_at_any_level_errs_about_as_often_as_it_says(df: float, level: float) -> None:
    """By integration over what 40 images and few runs show of their variances; Holm's correction asks for levels far below 5 %."""
    edges = np.concatenate([[0], np.geomspace(1e-10, 0.01, 300), np.linspace(0.01, 1, 200)[1:]])
    seen, weights = stats.chi2.ppf((edges[1:] + edges[:-1]) / 2, df) / df, np.diff(edges)[:, None]
    of_images = stats.chi2.ppf((np.arange(30) + 0.5) / 30, 39) / 39
    for share in (0.0, 0.1, 0.2, 0.5, 0.7, 0.9, 0.95, 0.98, 1.0):
        one, two = np.broadcast_arrays(share * seen[:, None], (1 - share) * of_images)
        half = Estimate(np.zeros(one.shape), one, np.asarray(df), two, 39.0).half(level)
        errs = float((2 * stats.norm.sf(half) * weights).sum() / 30)
        assert errs < (1.4 if df < 2 else 1.05) * level
        assert level < 0.05 or errs > 0.6 * level


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_p_is_the_level_whose_interval_ends_at_zero(runs: int) -> None:
    rng = np.random.default_rng(runs)
    for shift in (0.5, 3.0, 20.0):
        a, b = (Pooled.of(simulated(rng, runs, 40, by)) for by in (0.0, shift))
        found = Column({"a": a, "b": b}).difference("a", "b")
        assert float(found.half(found.p)) == pytest.approx(abs(float(found.value)), rel=1e-4)
        assert (float(found.p) < ALPHA) != found.interval().holds(0.0)
        assert found.interval().holds(float(found.value))


def test_corrected_intervals_and_p_values_agree() -> None:
    rng = np.random.default_rng(8)
    for _ in range(50):
        size = rng.integers(1, 9)
        errors, df = rng.uniform(0.2, 2, size), rng.choice([1.0, 3.0, 20.0], size)
        pairs = [
            Pair(Estimate(np.asarray(rng.normal(0, 4)), np.asarray(e**2), np.asarray(n), np.asarray(0.2), 30.0), True, 0.0, 3, 31)
            for e, n in zip(errors, df, strict=True)
        ]
        for found, pair in zip(differences(pairs), pairs, strict=True):
            assert found.p is not None and (found.p < ALPHA) != found.interval.holds(0.0)
            assert found.p >= float(pair.estimate.p) and found.interval.low <= pair.estimate.interval().low + 1e-9


def test_without_any_spread_a_difference_is_certain_and_no_difference_is_none() -> None:
    column = Column({"a": alike([50.0, 50.0]), "b": alike([50.0, 50.0]), "c": alike([60.0, 60.0])})
    assert float(column.difference("a", "b").p) == 1.0
    assert 0 < float(column.difference("a", "c").p) < 1e-6


@pytest.mark.parametrize(
    ("rows", "lacks"), [([[1, 0, 0]], True), ([[1, 2, 0]], False), ([[1, 2, 0], [3, 0, 0]], True), ([[0, 0, 0]], True)]
)
def test_an_interval_needs_two_images_with_pixels_in_every_run(rows: list[list[int]], lacks: bool) -> None:
    assert bool(counts(np.zeros(np.shape(rows)), np.array(rows)).lack) is lacks


def test_pooled_is_the_metric_of_every_run() -> None:
    assert pooled(counts(np.array([[1, 3], [0, 2]]), np.array([[2, 6], [4, 4]]))).tolist() == [50.0, 25.0]
    assert np.isnan(pooled(counts(np.array([[0]]), np.array([[0]])))).all()


def test_the_average_is_over_data_sets_whose_images_are_their_own() -> None:
    rng = np.random.default_rng(9)
    one, two = (Pooled.of(simulated(rng, 1, 60)) for _ in range(2))
    both = averaged([one, two])
    assert both is not None and (both.images, both.df) == (120, 118)
    assert float(both.images_variance()) == pytest.approx(float(one.images_variance() + two.images_variance()) / 4)
    assert averaged([one, Pooled.of(simulated(rng, 2, 60))]) is None


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_effect_size_is_cohens_d_of_the_images() -> None:
    gaps = np.array([[1.0, 2.0, 3.0, 6.0]])
    size = np.full((1, 4), 100.0)
    assert effect_size(counts(50 + gaps, size), counts(np.full((1, 4), 50.0), size)) == pytest.approx(3.0 / gaps.std(ddof=1))
    assert effect_size(counts(size, size), counts(size, size)) == 0.0


def test_ranks_and_critical_difference_are_the_textbooks() -> None:
    assert mean_ranks(np.array([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0]])).tolist() == [1.25, 1.75, 3.0]
    q = stats.studentized_range.ppf(0.95, 4, np.inf) / np.sqrt(2)  # 2.569 in Demšar 2006
    assert q == pytest.approx(2.569, abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
