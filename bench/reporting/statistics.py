"""Uncertainty of pooled IoU: bootstrap intervals over images and runs, paired differences, Holm's correction, effect sizes.

A method's value is the mean over runs (seeds and draws) of the IoU pooled over all test images. Both are resampled: images by
multinomial counts, the same for every run and every method, so that differences are paired; runs by normal weights on their
deviations (a multiplier bootstrap), the same for every method, because two runs have but three resamples with replacement. How
lopsided an interval is, the resamples say. How long it is, the variances of images and of runs say, with Student's t for the
number of each (see `quantile`): resamples of two or three runs alone understate how far runs lie apart.

Simulated coverage of the 95 % intervals, where the variance that runs add to the mean is 0 to 100 times that of the images: 91 to 97 %
for 2 runs (98 % where each takes to the images as differently as images differ), 94 to 97 % for 3, 94 to 96 % for 5 and 10. Where
two runs differ by much more than images explain, their interval is 12.7 standard errors to each side, which is all that one degree
of freedom is worth; Welch and Satterthwaite's degrees of freedom give shorter ones that hold the truth in 87 % of cases. One run
says nothing of other runs: its interval speaks of the images alone and holds the method's own value in 2Φ(1.96/√(1 + r)) - 1 of
cases, r being that ratio of variances: 95 % at r = 0, 92 % at 0.25, 83 % at 1, 62 % at 4. No construction can do better, for one run
does not tell r.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256

import numpy as np
from scipy import stats
from scipy.special import stdtrit

LEVEL = 0.95
RESAMPLES = 4000
SMALLEST_P = 1e-15
Values = np.ndarray  # float64; percent unless said otherwise


@dataclass(frozen=True)
class Counts:
    """Pixel counts of one method on one data set: (runs, images) arrays whose rows and columns are named."""

    runs: tuple[str, ...]
    images: tuple[str, ...]
    intersections: Values
    unions: Values


@dataclass(frozen=True)
class Interval:
    """The ends of a 95 % interval, in percent; it speaks of images alone where there is one run."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Sampled:
    """A pooled IoU, or a difference or mean of several, in percent: of every run (runs,), and under every resample of the images
    (resamples, runs); `images` are those behind it."""

    runs: tuple[str, ...]
    values: Values
    drawn: Values
    images: int

    def of_runs(self, runs: Sequence[str]) -> "Sampled":
        """The same with only these runs, in this order."""
        at = [self.runs.index(run) for run in runs]
        return Sampled(tuple(runs), self.values[at], self.drawn[:, at], self.images)

    def minus(self, other: "Sampled") -> "Sampled":
        """The difference, run by run; both have the same runs and images."""
        return Sampled(self.runs, self.values - other.values, self.drawn - other.drawn, self.images)

    @cached_property
    def value(self) -> float:
        """The mean over runs."""
        return float(self.values.mean())

    @cached_property
    def variances(self) -> tuple[float, float, float]:
        """Of the mean over runs: the variance that comes from the images; what the runs add to it; and all by which runs differ.

        Runs differ by how good each is, and by how each takes to the images at hand, which the first holds already: with e the
        resamples' IoU, the mean of Var(e) over runs exceeds Var(mean of e) by n-1 times that share, so that much is not added.
        """
        n, unbiased = len(self.runs), self.images / max(1, self.images - 1)
        of_images = float(self.drawn.mean(axis=1).var()) * unbiased
        if n < 2:
            return of_images, 0.0, 0.0
        shared = (float(self.drawn.var(axis=0).mean()) * unbiased - of_images) / (n - 1)
        of_runs = float(self.values.var(ddof=1)) / n
        return of_images, max(0.0, of_runs - shared), of_runs

    @property
    def error(self) -> float:
        """The standard error of the mean over runs."""
        of_images, added, _ = self.variances
        return float(np.sqrt(of_images + added))

    def quantile(self, p: float | Values) -> Values:
        """How many standard errors a two-sided test at level p allows: Student's t, between that of the images and of the runs.

        By the runs' share w of the variance to the power of 3/2: the textbook's two are Cochran's w, which covers up to 98 % with
        two runs, and Welch's, which falls to 87 %.
        """
        images, _, runs = self.variances
        quantile: Values = -stdtrit(self.images - 1, p / 2)
        if runs:
            quantile = quantile + (-stdtrit(len(self.runs) - 1, p / 2) - quantile) * (runs / (images + runs)) ** 1.5
        return quantile

    @cached_property
    def interval(self) -> Interval | None:
        """The 95 % interval; None for fewer than two images, or where any resample is not defined."""
        if self.images < 2 or np.isnan(self.drawn).any() or np.isnan(self.values).any():
            return None
        low, high = np.quantile(self._resampled_runs(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - self.value
        half = self.error * float(self.quantile(1 - LEVEL))
        stretch = 2 * half / (high - low) if high > low else 0.0
        ends = (self.value + low * stretch, self.value + high * stretch)
        return Interval(*(round(float(end), 6) for end in ends))  # the last bits depend on the machine's matrix product

    @cached_property
    def p(self) -> float:
        """Two-sided, that the mean is 0: the level at which it is as many standard errors away as `quantile` allows.

        With two or three runs whose share of the variance is above nine tenths, a p far below 0.01 is too small by a factor of ten
        and more; five runs are enough for all that a table of many comparisons asks.
        """
        if not self.error:
            return 1.0 if not self.value else 2 / (len(self.drawn) + 1)
        low, high = np.log(SMALLEST_P), 0.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.quantile(np.exp(middle)) * self.error > abs(self.value) else (low, middle)
        return float(f"{np.exp(high):.6g}")

    def _resampled_runs(self) -> Values:
        """The mean over runs under every resample of images and runs (resamples,)."""
        n, centre = len(self.runs), self.drawn.mean(axis=1)
        if n < 2:
            return np.asarray(centre)
        shift: Values = ((self.drawn - centre[:, None]) * _multipliers(_seed(self.runs), n, len(self.drawn))).sum(axis=1)
        return centre + shift / np.sqrt(n * (n - 1))


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


def sampled(counts: Counts, resamples: int = RESAMPLES) -> Sampled:
    """A method's pooled IoU under resamples of the images; NaN where a resample has no union.

    The resamples follow from the names of the images and runs alone: equal for all methods, and the same at every call.
    """
    weights = _weights(_seed(counts.images), len(counts.images), resamples)  # (resamples, images)
    drawn = _ratio(weights @ counts.intersections.T, weights @ counts.unions.T)  # (resamples, runs)
    return Sampled(counts.runs, pooled(counts), drawn, len(counts.images))


def averaged(parts: Sequence[Sampled]) -> Sampled | None:
    """The mean over data sets, whose images are resampled apart; None unless all have the same runs."""
    if len({part.runs for part in parts}) != 1:
        return None
    values, drawn = (np.mean([getattr(part, name) for part in parts], axis=0) for name in ("values", "drawn"))
    return Sampled(parts[0].runs, values, drawn, sum(part.images for part in parts))


def difference(pairs: Sequence[tuple[Counts, Counts]], draws: Sequence[tuple[Sampled, Sampled]]) -> Difference | None:
    """The mean of a - b over data sets, each a pair of counts and their resamples, on the runs that all have.

    The effect size is the mean of theirs. None where images differ, no run is common, or NaN occurs.
    """
    runs = [run for run in pairs[0][0].runs if all(run in side.runs for pair in pairs for side in pair)]
    if not runs or any(a.images != b.images for a, b in pairs):
        return None
    found = averaged([a.of_runs(runs).minus(b.of_runs(runs)) for a, b in draws])
    if found is None or found.interval is None:
        return None
    effect = float(np.mean([effect_size(a, b, runs) for a, b in pairs]))
    return Difference(found.value, found.interval, found.p, effect, len(runs), found.images)


def effect_size(a: Counts, b: Counts, runs: Sequence[str]) -> float:
    """Cohen's d of the paired images: mean over standard deviation of IoU(a) - IoU(b), runs averaged; 0 where all are equal."""
    gaps = _mean_ious(a, runs) - _mean_ious(b, runs)
    std = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    if std:
        return float(gaps.mean()) / std
    return float(np.sign(gaps.mean()) * np.inf) if gaps.any() else 0.0


def _mean_ious(counts: Counts, runs: Sequence[str]) -> Values:
    at = [counts.runs.index(run) for run in runs]
    return np.asarray(_ratio(counts.intersections[at], counts.unions[at], 0.0).mean(axis=0))


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


@lru_cache(maxsize=8)
def _multipliers(seed: int, n: int, resamples: int) -> Values:
    """Standard normal weights, (resamples, n): on n deviations over √(n(n-1)) they spread as the mean of n runs does."""
    return np.random.default_rng(seed).standard_normal((resamples, n))
