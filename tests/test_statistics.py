"""Statistics against closed forms and simulated truth."""

import numpy as np
import pytest
from scipy import stats

from bench.statistics import (
    Counts,
    average_difference,
    critical_difference,
    difference,
    effect_size,
    holm,
    interval,
    mean_ranks,
    pooled,
    resampled,
    run_widening,
    two_sided_p,
)


def counts(intersections: np.ndarray, unions: np.ndarray) -> Counts:
    """Counts with made-up names."""
    runs, images = np.shape(intersections)
    names = tuple(f"image {i}" for i in range(images))
    return Counts(tuple(f"seed {i}" for i in range(runs)), names, np.asarray(intersections, float), np.asarray(unions, float))


def simulated(rng: np.random.Generator, runs: int, images: int, run_sd: float, shift: float = 0.0, level: float = 60.0) -> Counts:
    """Images of random size and difficulty, which all runs share, runs that are better or worse by a random amount, and noise."""
    sizes = rng.gamma(4.0, 100.0, images)
    hardness = rng.normal(0, 12, images)
    iou = level + shift + hardness + rng.normal(0, run_sd, (runs, 1)) + rng.normal(0, 3, (runs, images))
    return counts(iou / 100 * sizes, np.broadcast_to(sizes, iou.shape))


def coverage(runs: int, images: int, run_sd: float, trials: int = 1200) -> float:
    """The share of simulated intervals that hold the true value, which is 60 for sizes independent of hardness."""
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(trials):
        found = interval(resampled(simulated(rng, runs, images, run_sd), 1000))
        held += found is not None and found.holds(60.0)
    return held / trials


@pytest.mark.parametrize(("runs", "run_sd"), [(1, 0.0), (3, 0.3), (5, 1.0), (10, 2.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(runs: int, run_sd: float) -> None:
    assert 0.92 <= coverage(runs, 100, run_sd) <= 0.97


def test_the_difference_of_equal_methods_is_seldom_significant() -> None:
    rng, significant, trials = np.random.default_rng(3), 0, 600
    for _ in range(trials):
        base = simulated(rng, 1, 80, 0.0)
        noisy = [counts(base.intersections + rng.normal(0, 15, (5, 80)), np.broadcast_to(base.unions, (5, 80))) for _ in range(2)]
        found = difference(*noisy, resamples=1000)
        assert found is not None
        significant += found.p < 0.05
    assert significant / trials <= 0.08


def test_a_large_difference_is_found_and_has_its_size() -> None:
    rng = np.random.default_rng(5)
    b = simulated(rng, 3, 100, 0.0)
    a = counts(b.intersections + 0.1 * b.unions, b.unions)
    found = difference(a, b)
    assert found is not None
    assert found.value == pytest.approx(10.0)
    assert (found.interval.low, found.interval.high) == (pytest.approx(10.0), pytest.approx(10.0))
    assert found.p <= 2 / 4001
    assert (found.runs, found.images) == (3, 100)
    backwards = difference(b, a)
    assert backwards is not None and backwards.value == pytest.approx(-10.0) and backwards.effect < -100


def test_for_equal_sizes_the_interval_is_the_closed_one_of_a_mean() -> None:
    rng = np.random.default_rng(11)
    ious = rng.normal(60, 10, (1, 400))
    found = interval(resampled(counts(ious, np.full((1, 400), 100.0))))
    assert found is not None
    half = 1.96 * ious.std(ddof=1) / 20
    assert found.low == pytest.approx(ious.mean() - half, abs=0.1)
    assert found.high == pytest.approx(ious.mean() + half, abs=0.1)


def test_runs_are_widened_as_students_t_asks() -> None:
    assert run_widening(1) == 1.0
    assert run_widening(3) == pytest.approx(4.3027 / 1.95996 * np.sqrt(1.5), rel=1e-4)
    assert run_widening(10_000) == pytest.approx(1.0, abs=1e-3)


def test_pooled_is_the_metric_of_every_run() -> None:
    assert pooled(counts(np.array([[1, 3], [0, 2]]), np.array([[2, 6], [4, 4]]))).tolist() == [50.0, 25.0]
    assert np.isnan(pooled(counts(np.array([[0]]), np.array([[0]])))).all()


def test_nan_never_passes_for_an_interval() -> None:
    assert interval(np.array([1.0, np.nan])) is None
    empty = counts(np.zeros((2, 3)), np.zeros((2, 3)))
    assert interval(resampled(empty, 50)) is None
    assert difference(empty, empty, resamples=50) is None


def test_differences_need_the_same_images_and_a_common_run() -> None:
    one = counts(np.ones((2, 3)), np.full((2, 3), 2.0))
    other_images = Counts(one.runs, ("x", "y", "z"), one.intersections, one.unions)
    other_runs = Counts(("seed 8", "seed 9"), one.images, one.intersections, one.unions)
    one_common = Counts(("seed 1", "seed 9"), one.images, one.intersections, one.unions)
    assert difference(one, other_images) is None
    assert difference(one, other_runs) is None
    found = difference(one, one_common)
    assert found is not None and found.runs == 1


def test_the_same_counts_give_the_same_numbers() -> None:
    made = simulated(np.random.default_rng(1), 3, 50, 1.0)
    assert resampled(made, 200).tolist() == resampled(made, 200).tolist()


def test_the_average_is_over_data_sets_that_are_resampled_apart() -> None:
    rng = np.random.default_rng(9)
    one, two = simulated(rng, 3, 60, 0.5), simulated(rng, 3, 60, 0.5, shift=4.0)
    elsewhere = [Counts(c.runs, tuple(f"other/{name}" for name in c.images), c.intersections, c.unions) for c in (one, two)]
    alone, both = average_difference([(two, one)]), average_difference([(two, one), (elsewhere[1], elsewhere[0])])
    assert alone is not None and both is not None
    assert both.value == pytest.approx(alone.value)
    assert both.interval.high - both.interval.low < alone.interval.high - alone.interval.low


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_p_is_two_sided_and_never_zero() -> None:
    assert two_sided_p(np.full(99, 1.0)) == pytest.approx(0.02)
    assert two_sided_p(np.zeros(9)) == 1.0
    far = np.random.default_rng(0).normal(6.0, 1.0, 999)
    assert 1e-12 < two_sided_p(far) < 1e-6  # more than 999 resamples can count


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
