"""One model of a table's numbers, from which its intervals, its p values and its marks all come.

The number is the pooled IoU of a method, its mean over draws of the shots, seeds and test images. Seeds are nested in draws, and both
are crossed with the methods, which see the same images:

    IoU(method, draw, seed) = mean(method) + draw + method x draw + seed within these + test images

What repeats as a whole are the draws, each with the mean of its seeds, or the seeds where there is one draw: the *units*. The
variance of the mean is that of the units, with one degree of freedom less than there are of them, and what the test images add,
by the jackknife of the ratio, with one less than there are images. What the images do to each unit differently is in the first
already and is taken out of the second. One draw says nothing of others, so the statement is then about this draw's seeds and
images; one run says nothing of others, so it is about images alone, and no methods are compared by it. What trains nothing
(SAM as it is) has no units: its images are all.

Two or three units say little of their own variance, so three and more methods of a column that have the same units share theirs: the
true variances are taken as scaled inverse chi-square around the column's mean s0² with d0 degrees of freedom, which the scatter of
their logarithms gives (Smyth 2004, doi 10.2202/1544-6115.1027, as in limma), and a method's own s² with d degrees becomes
(d0 s0² + d s²) / (d0 + d) with d0 + d, though never more than the column has: d M / (1 + (M - 1) c) for M methods whose units go
up and down together with correlation r, c = r^0.75 in place of r², because a few units hardly tell r. Where methods differ much in
their variance, the interval holds on average over them, not for the noisiest.

Student's t for a sum of variances V = V1 + V2, of runs and of images, at a level a: q² = z² + (t1² - z²) g(V1/V) + (t2² - z²) g(V2/V),
where z, t1 and t2 are the quantiles of the normal and of Student's distribution with the degrees of freedom of each, and g is 0 at 0
and 1 at 1: one variance alone is tested exactly. g(w) = w would be Cochran's, which never errs too often, but covers 98 % where it
should 95 %; Satterthwaite's falls to 88 %. With n degrees of freedom it is between them, g(w) = 1 - (1 - w^(1 + b))^(1 + c) with
b = k (3/4 + 3/4n²) and c = k 5/2n², and k = a / 5 %, at most 1: the further below 5 % the level, as Holm's correction asks for, the
nearer to Cochran's, as the far tail is that of the smaller degrees of freedom. The numbers were chosen, but what they do follows by
integration: whatever V1/V is, equal methods differ at 5 % in 3.3 to 6.3 % for n = 1, in at most 5.2 % from n = 1.3, and at no level
below it more often than 1.27 times what it says. `python -m bench.check statistics` simulates all this; results/studies/statistics.md
is what it found.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from scipy.special import ndtr, ndtri, polygamma, stdtrit

LEVEL = 0.95
ALPHA = 1 - LEVEL
SMALLEST_P = 1e-15
COMMON_EXPONENT = 0.75  # chosen on simulated coverage, as is `_weight`, see above
FEWEST_TO_SHARE = 3  # methods of a column; two tell nothing of how variances scatter
DEGREES = np.geomspace(0.1, 1e4, 2000)  # of a prior
TRIGAMMA = polygamma(1, DEGREES / 2)
Values = np.ndarray  # float64; percent unless said otherwise; leading axes are repetitions, of a simulation say
Run = tuple[Hashable, int]  # draw, seed


@dataclass(frozen=True)
class Counts:
    """Pixel counts of one method on one data set: (..., runs, images) arrays whose rows and columns are named.

    trains: False for what trains nothing, whose one run holds for all draws and seeds.
    """

    runs: tuple[Run, ...]
    images: tuple[str, ...]
    intersections: Values
    unions: Values
    trains: bool = True

    @property
    def lack(self) -> str:
        """Why the images give no interval, "" if they do: every run needs two with pixels in the union."""
        most = self.unions.max(axis=-1)
        return (
            "fewer than two of its test images have pixels in prediction or truth, or of a class"
            if (self.unions.sum(axis=-1) <= most).any()
            else ""
        )

    @cached_property
    def pooled(self) -> "Pooled":
        """Its IoU, taken apart once."""
        return Pooled.of(self)

    @cached_property
    def mean_ious(self) -> Values:
        """Every image's IoU in percent, the mean over runs."""
        return np.asarray(_ratio(self.intersections, self.unions, 0.0).mean(axis=0))

    def of_runs(self, runs: Sequence[Run]) -> "Counts":
        """The same with only these runs, in this order."""
        at = [self.runs.index(run) for run in runs]
        return Counts(tuple(runs), self.images, self.intersections[..., at, :], self.unions[..., at, :], self.trains)


@dataclass(frozen=True)
class Interval:
    """The ends of an interval, in percent."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies in it."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference with its two variances and their degrees of freedom; every field has the same leading axes."""

    value: Values
    of_runs: Values
    runs_df: Values
    of_images: Values
    images_df: Values | float

    @property
    def error(self) -> Values:
        """The standard error."""
        error: Values = np.sqrt(self.of_runs + self.of_images)
        return error

    def quantile(self, p: Values | float) -> Values:
        """How many standard errors a two-sided test at level p allows."""
        normal = ndtri(np.asarray(p) / 2) ** 2
        total = np.maximum(self.of_runs + self.of_images, np.finfo(float).tiny)
        squared = normal
        for variance, df in ((self.of_runs, self.runs_df), (self.of_images, self.images_df)):
            squared = squared + (stdtrit(df, np.asarray(p) / 2) ** 2 - normal) * _weight(variance / total, df, p)
        return np.asarray(np.sqrt(squared))

    def half(self, p: Values | float = ALPHA) -> Values:
        """Half the length of the interval that a test at level p belongs to."""
        return np.asarray(self.quantile(p) * self.error)

    def interval(self, p: float = ALPHA) -> Interval:
        """The interval that holds what a two-sided test at level p does not reject; it is symmetric around the value."""
        half = self.half(p)
        return Interval(float(self.value - half), float(self.value + half))

    @cached_property
    def p(self) -> Values:
        """Two-sided, that the value is 0: the level whose interval ends there, not below SMALLEST_P."""
        low, high = np.full(np.shape(self.value), np.log(SMALLEST_P)), np.zeros(np.shape(self.value))
        for _ in range(50):
            middle = (low + high) / 2
            inside = self.half(np.exp(middle)) >= np.abs(self.value)
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        return np.asarray(np.exp(high))


@dataclass(frozen=True)
class Pooled:
    """A method's pooled IoU in percent, taken apart.

    units: draws, or seeds of one draw; none where nothing is trained. deviations: of every unit from the mean, (..., units).
    influences: of every image on every unit, (..., units or 1, images), so that the squares of their mean over units sum up to
    its variance. df: of the images.
    """

    value: Values
    units: tuple[Hashable, ...]
    deviations: Values
    influences: Values
    images: int
    df: int

    @classmethod
    def of(cls, counts: Counts) -> "Pooled":
        """From pixel counts that have no `lack`. Draws count by their seeds, as in the mean over runs."""
        values, by_image = pooled(counts), influences(counts)
        if not counts.trains:
            values, by_image = values[..., :1], by_image[..., :1, :]
        draws = list(dict.fromkeys(draw for draw, _ in counts.runs))
        names: list[Hashable] = draws if len(draws) > 1 else list(counts.runs)
        member = np.array([[(run[0] if len(draws) > 1 else run) == name for run in counts.runs] for name in names], float)
        member = member[:1, :1] if not counts.trains else member
        weights = member * len(member) / member.sum()  # (units, runs): their product with runs has the mean over runs as its mean
        value = values.mean(axis=-1)
        deviations = (values - value[..., None]) @ weights.T
        used = int((counts.unions > 0).any(axis=tuple(range(counts.unions.ndim - 1))).sum())
        units = tuple(names) if counts.trains else ()
        return cls(value, units, deviations, np.asarray(weights @ by_image), len(counts.images), used - 1)

    @property
    def trains(self) -> bool:
        """Whether draws and seeds mean anything to it."""
        return bool(self.units)

    def minus(self, other: "Pooled") -> "Pooled":
        """The difference on the same images; of the same units, or of one side that has none."""
        units = self.units or other.units
        deviations, influences = self.deviations - other.deviations, self.influences - other.influences
        return Pooled(self.value - other.value, units, deviations, influences, self.images, self.df)

    def images_variance(self) -> Values:
        """Of the mean over units: what the images at hand add to the variance of the units, never below 0."""
        n = self.influences.shape[-2]
        of_mean = np.square(self.influences.mean(axis=-2)).sum(axis=-1)
        if n < 2:
            return np.asarray(of_mean)
        apart = np.square(self.influences).sum(axis=-1).mean(axis=-1)
        return np.asarray(np.maximum(0.0, of_mean - (apart - of_mean) / (n - 1)))


def averaged(parts: Sequence[Pooled]) -> Pooled | None:
    """The mean over data sets, each with images of its own; None unless all have the same units."""
    if len({part.units for part in parts}) != 1:
        return None
    value, deviations = (np.mean([getattr(part, name) for part in parts], axis=0) for name in ("value", "deviations"))
    influences = np.concatenate([part.influences for part in parts], axis=-1) / len(parts)
    return Pooled(value, parts[0].units, deviations, influences, sum(p.images for p in parts), sum(p.df for p in parts))


class Column:
    """The methods of a table's column, on the same test images: their means and differences by one model (see above)."""

    def __init__(self, methods: Mapping[str, Pooled]) -> None:
        self.methods = methods
        groups: dict[tuple[Hashable, ...], list[str]] = {}
        for name, method in methods.items():
            if len(method.units) > 1:
                groups.setdefault(method.units, []).append(name)
        self.shared = {
            units: (names, Shared.of(np.stack([methods[name].deviations for name in names], axis=-2))) for units, names in groups.items()
        }

    def mean(self, name: str) -> Estimate:
        """A method's mean over what its units generalise to."""
        method = self.methods[name]
        variance, df = np.zeros(np.shape(method.value)), np.asarray(1.0)
        if len(method.units) > 1:
            names, shared = self.shared[method.units]
            variance, df = shared.mean(names.index(name))
        return _estimate(method, variance, df)

    def difference(self, a: str, b: str) -> Estimate:
        """a - b, unit by unit; both have the same units, or one has none. Over images alone where `tells` says no."""
        one, other = self.methods[a], self.methods[b]
        found = one.minus(other)
        if len(found.units) < 2:
            return _estimate(found, np.zeros(np.shape(found.value)), np.asarray(1.0))
        names, shared = self.shared[found.units]
        if one.trains and other.trains:
            return _estimate(found, *shared.difference(found.deviations))
        return _estimate(found, *shared.mean(names.index(a if one.trains else b)))

    def comparable(self, a: str, b: str) -> bool:
        """Whether both are here with the same units, or one has none."""
        units = {self.methods[name].units for name in (a, b) if name in self.methods and self.methods[name].trains}
        return {a, b} <= set(self.methods) and len(units) < 2

    def tells(self, a: str, b: str) -> bool:
        """Whether runs can tell a from b: each that is trained has two units or more."""
        return all(len(self.methods[name].units) > 1 for name in (a, b) if self.methods[name].trains)


def _weight(share: Values, df: Values | float, p: Values | float) -> Values:
    """g of a variance's share and degrees of freedom at a level, see above."""
    once, level = 1 / np.square(np.asarray(df)), np.minimum(1.0, np.asarray(p) / ALPHA)
    return np.asarray(1 - (1 - share ** (1 + level * (0.75 + 0.75 * once))) ** (1 + level * 2.5 * once))


def _estimate(found: Pooled, variance: Values, df: Values) -> Estimate:
    return Estimate(np.asarray(found.value), variance / max(1, len(found.units)), df, found.images_variance(), float(found.df))


@dataclass(frozen=True)
class Shared:
    """What methods with the same units tell of each other's variance: own, (..., methods); column and of_differences, (..., 1);
    prior: d0; most: the degrees of freedom that the whole column has."""

    own: Values
    df: int
    column: Values
    of_differences: Values
    prior: Values
    most: Values

    @classmethod
    def of(cls, deviations: Values) -> "Shared":
        """From (..., methods, units)."""
        methods, df = deviations.shape[-2], deviations.shape[-1] - 1
        own = np.square(deviations).sum(axis=-1) / df
        column = own.mean(axis=-1, keepdims=True)
        if methods < FEWEST_TO_SHARE:
            none = np.zeros_like(column)
            return cls(own, df, column, column, none, none + df)
        together = deviations.mean(axis=-2, keepdims=True)
        common = np.square(together).sum(axis=-1) / df
        alone = np.maximum(0.0, column - common) * methods / (methods - 1)  # the methods' own, without what moves them all
        share = np.divide(methods * common, column, out=np.ones_like(common), where=column > 0)
        correlation = np.clip((share - 1) / (methods - 1), 0.0, 1.0)
        prior = _prior(np.square(deviations - together).sum(axis=-1) / df, df)
        return cls(own, df, column, 2 * alone, prior, df * methods / (1 + (methods - 1) * correlation**COMMON_EXPONENT))

    def mean(self, i: int) -> tuple[Values, Values]:
        """The variance of a unit of method i, and its degrees of freedom."""
        variance = self._moderated(self.own[..., i], self.column[..., 0])
        return variance, np.minimum(self.prior + self.df, self.most)[..., 0]

    def difference(self, deviations: Values) -> tuple[Values, Values]:
        """The same for the difference of two methods, whose units deviate by this."""
        own, methods = np.square(deviations).sum(axis=-1) / self.df, self.own.shape[-1]
        variance = self._moderated(own, self.of_differences[..., 0])
        return variance, np.minimum(self.prior + self.df, self.df * max(1, methods - 1))[..., 0]

    def _moderated(self, own: Values, column: Values) -> Values:
        prior = self.prior[..., 0]
        return np.asarray((prior * column + self.df * own) / (prior + self.df))


def _prior(variances: Values, df: int) -> Values:
    """d0 of a scaled inverse chi-square that variances (..., methods) with df degrees each come from, (..., 1), at most DEGREES[-1]."""
    logs = np.log(np.maximum(variances, np.finfo(float).tiny))
    beyond = logs.var(axis=-1, ddof=1, keepdims=True) - polygamma(1, df / 2)
    return np.asarray(np.interp(-beyond, -TRIGAMMA, DEGREES))


@dataclass(frozen=True)
class Pair:
    """Two methods that are to be compared: a - b, whether runs tell, the effect size, runs that both have, and images."""

    estimate: Estimate
    tells: bool
    effect: float
    runs: int
    images: int


@dataclass(frozen=True)
class Difference:
    """a - b in percentage points on the same images; `effect` is Cohen's d of the images' IoUs.

    p: two-sided, corrected for all that are compared together; None where one run cannot tell. interval: at the level that the
    correction leaves this comparison, so that it excludes 0 exactly where p is below 0.05; over images alone where there is no p.
    """

    value: float
    interval: Interval
    p: float | None
    effect: float
    runs: int
    images: int

    @property
    def significant(self) -> bool:
        """Whether a and b are told apart."""
        return self.p is not None and self.p < ALPHA


def differences(pairs: Sequence[Pair]) -> list[Difference]:
    """Comparisons that are made together, by Holm's correction."""
    if not pairs:
        return []
    together = Estimate(*(np.array([getattr(pair.estimate, f.name) for pair in pairs], float) for f in fields(Estimate)))
    tell = np.array([pair.tells for pair in pairs])
    p, corrected = together.p, np.full(len(pairs), np.nan)
    corrected[tell] = holm(p[tell])
    halves = together.half(np.where(tell, ALPHA * p / np.where(tell, corrected, 1), ALPHA))
    made = []
    for pair, half, of in zip(pairs, halves, corrected, strict=True):
        value = float(pair.estimate.value)
        interval = Interval(float(value - half), float(value + half))
        made.append(Difference(value, interval, float(of) if pair.tells else None, pair.effect, pair.runs, pair.images))
    return made


def pooled(counts: Counts) -> Values:
    """Each run's pooled IoU in percent, (..., runs); NaN where its union is empty."""
    return _ratio(counts.intersections.sum(axis=-1), counts.unions.sum(axis=-1))


def influences(counts: Counts) -> Values:
    """Of every image on every run's pooled IoU, by leaving it out; their squares sum up to the jackknife's variance."""
    used = (counts.unions > 0).sum(axis=-1, keepdims=True)
    totals = counts.unions.sum(axis=-1, keepdims=True)
    ratio = counts.intersections.sum(axis=-1, keepdims=True) / totals
    moved = (counts.intersections - ratio * counts.unions) / (totals - counts.unions)
    return np.asarray(100 * moved * np.sqrt((used - 1) / used))


def effect_size(a: Counts, b: Counts) -> float:
    """Cohen's d of the paired images: mean over standard deviation of IoU(a) - IoU(b), runs averaged; 0 where all are equal."""
    gaps = a.mean_ious - b.mean_ious
    std = float(gaps.std(ddof=1)) if len(gaps) > 1 else 0.0
    if std:
        return float(gaps.mean()) / std
    return float(np.sign(gaps.mean()) * np.inf) if gaps.any() else 0.0


def holm(p_values: Sequence[float] | Values) -> list[float]:
    """Holm's step-down correction for that many comparisons, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = floor
    return corrected


def mean_ranks(scores: Values) -> Values:
    """Mean rank (1 is best, ties shared) of every method over data sets; scores: (data sets, methods)."""
    one, other = scores[:, :, None], scores[:, None, :]
    ranks: Values = ((other > one).sum(axis=-1) + ((other == one).sum(axis=-1) + 1) / 2).mean(axis=0)
    return ranks


def critical_difference(methods: int, datasets: int) -> float:
    """Nemenyi's: mean ranks that differ by less are not told apart at the 5 % level."""
    return float(_studentized_range(methods) * np.sqrt(methods * (methods + 1) / (12 * datasets)))


def _studentized_range(methods: int) -> float:
    """The LEVEL quantile of the range of that many standard normal numbers; `scipy.stats` has it too, and takes longer to load than a
    table takes."""
    at = np.linspace(-9.0, 9.0, 3601)
    density = methods * np.exp(-(at**2) / 2) / np.sqrt(2 * np.pi)
    low, high = 0.0, 20.0
    while high - low > 1e-9:
        q = (low + high) / 2
        below = np.trapezoid(density * (ndtr(at) - ndtr(at - q)) ** (methods - 1), at)
        low, high = (q, high) if below < LEVEL else (low, q)
    return high


def _ratio(parts: Values, wholes: Values, empty: float = np.nan) -> Values:
    ratio: Values = np.divide(100.0 * parts, wholes, out=np.full(np.shape(parts), empty, float), where=np.asarray(wholes) > 0)
    return ratio
