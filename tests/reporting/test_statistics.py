"""Statistics against closed forms and simulated truth."""

import numpy as np
import pytest
from scipy import stats

from bench.reporting.statistics import (
    Counts,
    Difference,
    Sampled,
    averaged,
    critical_difference,
    difference,
    effect_size,
    holm,
    mean_ranks,
    pooled,
    sampled,
)


def counts(intersections: np.ndarray, unions: np.ndarray) -> Counts:
    """Counts with made-up names."""
    runs, images = np.shape(intersections)
    names = tuple(f"image {i}" for i in range(images))
    return Counts(tuple(f"seed {i}" for i in range(runs)), names, np.asarray(intersections, float), np.asarray(unions, float))


HARDNESS, NOISE = 12.0, 3.0  # standard deviations of images, and of how each run takes to each image, in points of IoU


def simulated(rng: np.random.Generator, runs: int, images: int, run_sd: float, shift: float = 0.0) -> Counts:
    """Images of random size and difficulty, which all runs share, runs that are better or worse by a random amount, and noise."""
    sizes = rng.gamma(4.0, 100.0, images)
    iou = 60 + shift + rng.normal(0, HARDNESS, images) + rng.normal(0, run_sd, (runs, 1)) + rng.normal(0, NOISE, (runs, images))
    return counts(iou / 100 * sizes, np.broadcast_to(sizes, iou.shape))


def coverage(runs: int, ratio: float, images: int = 64, trials: int = 700) -> float:
    """The share of simulated intervals that hold the true value, which is 60 because sizes do not depend on hardness.

    ratio: the variance that runs add to the mean over that of the images, whose random sizes count as 1.25 times fewer of them.
    """
    rng, run_sd = np.random.default_rng(7), HARDNESS * np.sqrt(1.25 / images * ratio * runs)
    found = [sampled(simulated(rng, runs, images, run_sd), 300).interval for _ in range(trials)]
    return sum(interval is not None and interval.holds(60.0) for interval in found) / trials


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 4.0, 100.0])
@pytest.mark.parametrize("runs", [2, 3, 5, 10])
def test_intervals_hold_the_truth_as_often_as_they_say(runs: int, ratio: float) -> None:
    assert 0.92 <= coverage(runs, ratio) <= 0.97


def test_one_run_speaks_of_the_images_alone() -> None:
    assert 0.92 <= coverage(1, 0.0) <= 0.97
    for ratio in (1.0, 4.0):  # what the module says can be had: nothing tells one run how far the others lie
        assert coverage(1, ratio) == pytest.approx(2 * stats.norm.cdf(1.96 / np.sqrt(1 + ratio)) - 1, abs=0.035)


def test_two_runs_no_longer_mean_a_useless_interval_where_they_agree() -> None:
    rng = np.random.default_rng(2)
    lengths = []
    for _ in range(50):
        two = sampled(simulated(rng, 2, 64, 0.3), 300)
        alone = two.of_runs(two.runs[:1])
        assert two.interval is not None and alone.interval is not None
        lengths.append((two.interval.high - two.interval.low) / (alone.interval.high - alone.interval.low))
    assert 0.95 < np.median(lengths) < 1.2


def test_quantiles_are_students_of_the_images_or_of_the_runs() -> None:
    images, runs = np.random.default_rng(4).normal(0, 1, (500, 1)), np.array([50.0, 60.0, 70.0])
    only_images = sampled(counts(np.full((3, 30), 50.0), np.full((3, 30), 100.0)))
    assert only_images.quantile(0.05) == pytest.approx(stats.t.ppf(0.975, 29))
    only_runs = Sampled(("a", "b", "c"), runs, np.broadcast_to(runs, (500, 3)), 30)
    assert only_runs.quantile(0.05) == pytest.approx(stats.t.ppf(0.975, 2))
    assert only_runs.interval is not None and only_runs.error == pytest.approx(10 / np.sqrt(3))
    closed = stats.t.interval(0.95, 2, 60, 10 / np.sqrt(3))
    assert (only_runs.interval.low + only_runs.interval.high) / 2 == pytest.approx(60, abs=4)
    assert only_runs.interval.high - only_runs.interval.low == pytest.approx(closed[1] - closed[0])
    both = Sampled(("a", "b", "c"), runs / 10, runs / 10 + images, 30)
    assert stats.t.ppf(0.975, 29) < both.quantile(0.05) < stats.t.ppf(0.975, 2)


def differ(a: Counts, b: Counts, resamples: int = 4000) -> Difference | None:
    """The difference on one data set."""
    return difference([(a, b)], [(sampled(a, resamples), sampled(b, resamples))])


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_the_difference_of_equal_methods_is_seldom_significant(runs: int) -> None:
    rng, significant, trials = np.random.default_rng(3), 0, 400
    for _ in range(trials):
        base = simulated(rng, 1, 80, 0.0)
        shifts = rng.normal(0, 1.0 if runs > 1 else 0.0, (2, runs, 1)) * base.unions / 100
        pair = [base.intersections + rng.normal(0, 15, (runs, 80)) + shift for shift in shifts]
        found = differ(*(counts(part, np.broadcast_to(base.unions, part.shape)) for part in pair), resamples=300)
        assert found is not None
        significant += found.p < 0.05
    assert significant / trials <= 0.09


def test_p_is_the_level_whose_interval_ends_at_zero() -> None:
    rng = np.random.default_rng(6)
    for runs in (1, 2, 4):
        found = sampled(simulated(rng, runs, 40, 1.0), 500).minus(sampled(simulated(rng, runs, 40, 1.0, shift=3.0), 500))
        assert found.quantile(found.p) * found.error == pytest.approx(abs(found.value), rel=1e-4)


def test_a_large_difference_is_found_and_has_its_size() -> None:
    rng = np.random.default_rng(5)
    b = simulated(rng, 3, 100, 0.0)
    a = counts(b.intersections + 0.1 * b.unions, b.unions)
    found = differ(a, b)
    assert found is not None
    assert found.value == pytest.approx(10.0)
    assert (found.interval.low, found.interval.high) == (pytest.approx(10.0), pytest.approx(10.0))
    assert found.p <= 2 / 4001
    assert (found.runs, found.images) == (3, 100)
    backwards = differ(b, a)
    assert backwards is not None and backwards.value == pytest.approx(-10.0) and backwards.effect < -100


def test_for_equal_sizes_the_interval_is_the_closed_one_of_a_mean() -> None:
    rng = np.random.default_rng(11)
    ious = rng.normal(60, 10, (1, 400))
    found = sampled(counts(ious, np.full((1, 400), 100.0))).interval
    assert found is not None
    half = 1.96 * ious.std(ddof=1) / 20
    assert found.low == pytest.approx(ious.mean() - half, abs=0.1)
    assert found.high == pytest.approx(ious.mean() + half, abs=0.1)


def test_pooled_is_the_metric_of_every_run() -> None:
    assert pooled(counts(np.array([[1, 3], [0, 2]]), np.array([[2, 6], [4, 4]]))).tolist() == [50.0, 25.0]
    assert np.isnan(pooled(counts(np.array([[0]]), np.array([[0]])))).all()


def test_nan_never_passes_for_an_interval() -> None:
    one = Sampled(("a", "b"), np.array([1.0, 2.0]), np.array([[1.0, 2.0], [1.0, np.nan]]), 9)
    assert one.interval is None
    empty = counts(np.zeros((2, 3)), np.zeros((2, 3)))
    assert sampled(empty, 50).interval is None
    assert differ(empty, empty, resamples=50) is None


def test_one_image_has_no_interval() -> None:
    assert sampled(counts(np.array([[1], [2]]), np.array([[2], [4]])), 50).interval is None


def test_differences_need_the_same_images_and_a_common_run() -> None:
    one = counts(np.ones((2, 3)), np.full((2, 3), 2.0))
    other_images = Counts(one.runs, ("x", "y", "z"), one.intersections, one.unions)
    other_runs = Counts(("seed 8", "seed 9"), one.images, one.intersections, one.unions)
    one_common = Counts(("seed 1", "seed 9"), one.images, one.intersections, one.unions)
    assert differ(one, other_images) is None
    assert differ(one, other_runs) is None
    found = differ(one, one_common)
    assert found is not None and found.runs == 1


def test_the_same_counts_give_the_same_numbers() -> None:
    made = simulated(np.random.default_rng(1), 3, 50, 1.0)
    assert sampled(made, 200).drawn.tolist() == sampled(made, 200).drawn.tolist()


def test_the_average_is_over_data_sets_that_are_resampled_apart() -> None:
    rng = np.random.default_rng(9)
    one, two = simulated(rng, 3, 60, 0.5), simulated(rng, 3, 60, 0.5, shift=4.0)
    elsewhere = [Counts(c.runs, tuple(f"other/{name}" for name in c.images), c.intersections, c.unions) for c in (one, two)]
    pairs = [(two, one), (elsewhere[1], elsewhere[0])]
    alone, both = differ(two, one), difference(pairs, [(sampled(a), sampled(b)) for a, b in pairs])
    assert alone is not None and both is not None
    assert both.value == pytest.approx(alone.value)
    assert both.interval.high - both.interval.low < alone.interval.high - alone.interval.low
    assert averaged([sampled(one, 50), sampled(Counts(("x", "y", "z"), one.images, one.intersections, one.unions), 50)]) is None


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_p_is_never_zero() -> None:
    def of(value: float) -> float:
        return Sampled(("a", "b"), np.array([value, value]), np.full((99, 2), value), 9).p

    assert of(1.0) == pytest.approx(0.02)
    assert of(0.0) == 1.0


def test_effect_size_is_cohens_d_of_the_images() -> None:
    gaps = np.array([[1.0, 2.0, 3.0, 6.0]])
    size = np.full((1, 4), 100.0)
    assert effect_size(counts(50 + gaps, size), counts(np.full((1, 4), 50.0), size), ["seed 0"]) == pytest.approx(3.0 / gaps.std(ddof=1))
    assert effect_size(counts(size, size), counts(size, size), ["seed 0"]) == 0.0


def test_ranks_and_critical_difference_are_the_textbooks() -> None:
    assert mean_ranks(np.array([[3.0, 2.0, 1.0], [2.0, 2.0, 1.0]])).tolist() == [1.25, 1.75, 3.0]
    q = stats.studentized_range.ppf(0.95, 4, np.inf) / np.sqrt(2)  # 2.569 in Demšar 2006
    assert q == pytest.approx(2.569, abs=1e-3)
    assert critical_difference(4, 14) == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=1e-3)
