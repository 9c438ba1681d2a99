"""Uncertainty of pooled IoU: bootstrap intervals over images and runs, paired differences, Holm's correction, effect sizes.

A method's value is the mean over runs (seeds and draws) of the IoU pooled over all test images. Both are resampled: images by
multinomial counts, the same for every run and every method, so that differences are paired; runs by multinomial counts too.
The few runs' deviations are widened (see `run_widening`), because a bootstrap of n runs understates their spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 4000
Values = np.ndarray  # float64; percent unless said otherwise


@dataclass(frozen=True)
class Counts:
    """Pixel counts of one method on one data set: (runs, images) arrays whose rows and columns are named."""

    runs: tuple[str, ...]
    images: tuple[str, ...]
    intersections: Values
    unions: Values

    def of_runs(self, runs: Sequence[str]) -> "Counts":
        """The same with only these runs, in this order."""
        rows = [self.runs.index(run) for run in runs]
        return Counts(tuple(runs), self.images, self.intersections[rows], self.unions[rows])


@dataclass(frozen=True)
class Interval:
    """The ends of a 95 % interval, in percent; it speaks of images alone where there is one run."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Difference:
    """a - b in percentage points on the same images and runs; `p` is two-sided; `effect` is Cohen's d of the images' IoUs."""

    value: float
    interval: Interval
    p: float
    effect: float
    runs: int
    images: int


def pooled(counts: Counts) -> Values:
    """Each run's pooled IoU in percent (runs,); NaN where its union is empty."""
    return _ratio(counts.intersections.sum(axis=1), counts.unions.sum(axis=1))


def resampled(counts: Counts, resamples: int = RESAMPLES) -> Values:
    """The value under every resample (resamples,), in percent; NaN where a resample has no union.

    The resamples follow from the names of the images and runs alone: equal for all methods, and the same at every call.
    """
    weights = _weights(_seed(counts.images), len(counts.images), resamples)  # (resamples, images)
    ious = _ratio(weights @ counts.intersections.T, weights @ counts.unions.T)  # (resamples, runs)
    return _over_runs(ious, _weights(_seed(counts.runs), len(counts.runs), resamples))


def _over_runs(ious: Values, weights: Values) -> Values:
    n = ious.shape[1]
    centre = ious.mean(axis=1)
    shift: Values = ((ious - centre[:, None]) * weights).sum(axis=1) / n
    return centre + shift * run_widening(n)


def run_widening(runs: int) -> float:
    """By what the resampled runs' deviations are multiplied: Student's t over the normal quantile, and √(n/(n-1)).

    Without it, the interval of three runs that differ would hold the truth in 70 % of cases. 1 for a single run, whose
    deviation is 0: then the interval speaks of the images alone.
    """
    if runs < 2:
        return 1.0
    tail = (1 + LEVEL) / 2
    return float(stats.t.ppf(tail, runs - 1) / stats.norm.ppf(tail) * np.sqrt(runs / (runs - 1)))


def interval(values: Values) -> Interval | None:
    """The percentile interval of resampled values; None where any of them is not defined."""
    if not len(values) or np.isnan(values).any():
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(round(float(low), 6), round(float(high), 6))  # the last bits depend on the machine's matrix product


def two_sided_p(values: Values) -> float:
    """The share of resampled differences on the rarer side of 0, doubled.

    Where none is there, a normal tail says how far 0 lies outside, or a table of many comparisons could find nothing.
    """
    rarer = min(int(np.count_nonzero(values <= 0)), int(np.count_nonzero(values >= 0)))
    counted = min(1.0, 2 * (rarer + 1) / (len(values) + 1))
    spread = float(values.std())
    if rarer or not spread:
        return counted
    return min(counted, float(2 * stats.norm.sf(abs(float(values.mean())) / spread)))


def difference(a: Counts, b: Counts, resamples: int = RESAMPLES) -> Difference | None:
    """The paired difference a - b over the runs that both have; None where images differ, no run is common, or NaN occurs."""
    return average_difference([(a, b)], resamples)


def average_difference(pairs: Sequence[tuple[Counts, Counts]], resamples: int = RESAMPLES) -> Difference | None:
    """The mean of a - b over data sets, each a pair, on the runs that all have; the effect size is the mean of theirs."""
    runs = [run for run in pairs[0][0].runs if all(run in side.runs for pair in pairs for side in pair)]
    if not runs or any(a.images != b.images for a, b in pairs):
        return None
    same = [(a.of_runs(runs), b.of_runs(runs)) for a, b in pairs]
    values: Values = np.mean([resampled(a, resamples) - resampled(b, resamples) for a, b in same], axis=0)
    found = interval(values)
    if found is None:
        return None
    value = float(np.mean([(pooled(a) - pooled(b)).mean() for a, b in same]))
    effect = float(np.mean([effect_size(a, b) for a, b in same]))
    return Difference(value, found, two_sided_p(values), effect, len(runs), sum(len(a.images) for a, _ in same))


def effect_size(a: Counts, b: Counts) -> float:
    """Cohen's d of the paired images: mean over standard deviation of IoU(a) - IoU(b), runs averaged; 0 where all are equal."""
    gaps = (_ratio(a.intersections, a.unions, 0.0) - _ratio(b.intersections, b.unions, 0.0)).mean(axis=0)
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    if spread:
        return float(gaps.mean()) / spread
    return float(np.sign(gaps.mean()) * np.inf) if gaps.any() else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for that many comparisons, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = floor
    return corrected


def mean_ranks(scores: Values) -> Values:
    """Mean rank (1 is best, ties shared) of every method over data sets; scores: (data sets, methods)."""
    ranks: Values = np.mean([stats.rankdata(-row) for row in scores], axis=0)
    return ranks


def critical_difference(methods: int, datasets: int) -> float:
    """Nemenyi's: mean ranks that differ by less are not told apart at the 5 % level."""
    q = stats.studentized_range.ppf(LEVEL, methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(methods * (methods + 1) / (6 * datasets)))


def _ratio(parts: Values, wholes: Values, empty: float = np.nan) -> Values:
    ratio: Values = np.divide(100.0 * parts, wholes, out=np.full(np.shape(parts), empty, float), where=np.asarray(wholes) > 0)
    return ratio


def _seed(names: Sequence[str]) -> int:
    return int.from_bytes(sha256("\n".join(names).encode()).digest()[:8], "big")


@lru_cache(maxsize=8)
def _weights(seed: int, n: int, resamples: int) -> Values:
    """How often each of n things is drawn, (resamples, n), float64 for the matrix product."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
