"""Aggregates over data sets, draws and seeds, after Agarwal et al. 2021 (arXiv 2108.13264): the interquartile mean, performance
profiles, the probability of improvement, scores normalised by zero-shot and by the best, and mean ranks with Nemenyi's critical difference.

Scores of a method are (units, runs, data sets): units are what repeats as a whole, as in `bench.reporting.statistics`: draws with all
their seeds, or the seeds of one draw. Intervals are percentiles of the stratified bootstrap, which takes units anew for each data set.
Where every unit is one run this is `rliable`'s, number for number; where draws have several seeds, `rliable` would take these for
independent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from bench.errors import counted
from bench.grid.published import Published, ordered
from bench.reporting.comparable import ComparableCells
from bench.reporting.components import ends
from bench.reporting.labels import Facts, Labels
from bench.reporting.statistics import Interval, Values, critical_difference, mean_ranks
from bench.reporting.table import BRACKETS, Cell, Column, Row, Table
from bench.reporting.table_statistics import BEST, PAIRS

REPETITIONS = 2000
THRESHOLDS = (50, 60, 70, 80, 90)  # percent of mIoU, of the profile's table
FEWEST = 2  # methods, units
FEW_UNITS = 10
TOO_SHORT = (
    f"Intervals of fewer than {FEW_UNITS} {{}}s are too short, as rliable's are: on one data set the bootstrap's hold the truth in about "
    "50 % of cases for 2 of them, 75 % for 3, 90 % for 5; on three data sets in 75, 85 and 90 %."
)
LEAST_GAIN = 1.0  # points above zero-shot from which scores are normalised by it
Statistic = Callable[[Values], Values]  # (…, units, runs, data sets) -> (…)


@lru_cache(maxsize=8)  # many methods have as many units
def picked(units: int, datasets: int, stream: int = 0) -> Values:
    """Which units each repetition of the bootstrap has of each data set, (REPETITIONS, units, data sets)."""
    return np.random.default_rng((0, stream)).integers(0, units, (REPETITIONS, units, datasets))


def resampled(scores: Values, picks: Values) -> Values:
    """Scores (units, runs, data sets) with these units of each data set, (repetitions, units, runs, data sets)."""
    return np.asarray(scores[picks[:, :, None], np.arange(scores.shape[1])[:, None], np.arange(scores.shape[2])])


def iqm(scores: Values) -> Values:
    """The mean of the middle half of all runs on all data sets."""
    runs = np.sort(scores.reshape(*scores.shape[:-3], -1), axis=-1)
    cut = runs.shape[-1] // 4
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(axis=-1))


def improvement(x: Values, y: Values) -> Values:
    """The probability that a run of x is above one of y on the same data set, equal ones by half; the mean over data sets."""
    return np.asarray(_won(x, y).mean())


def _won(x: Values, y: Values) -> Values:
    """That of every unit of x against every unit of y, (units, units, data sets)."""
    gaps = np.sign(x[:, None, :, None] - y[None, :, None, :])
    return np.asarray((gaps + 1).mean(axis=(2, 3)) / 2)


def above(scores: Values, thresholds: Sequence[float] | Values) -> Values:
    """The share of runs on all data sets that are above each threshold, (…, thresholds); these ascend."""
    runs = scores.reshape(*scores.shape[:-3], -1)
    passed = np.searchsorted(thresholds, runs).reshape(-1, runs.shape[-1])  # of how many thresholds a run is above
    counts = np.array([np.bincount(of, minlength=len(thresholds) + 1) for of in passed])
    beyond = counts[:, ::-1].cumsum(axis=-1)[:, -2::-1]
    return np.asarray(beyond / runs.shape[-1]).reshape(*runs.shape[:-1], len(thresholds))


def interval(statistic: Statistic, scores: Values, picks: Values | None = None) -> Interval:
    """The bootstrap's 95 % interval of a statistic."""
    chosen = picked(scores.shape[0], scores.shape[2]) if picks is None else picks
    return ends(statistic(resampled(scores, chosen)))


def improvement_interval(x: Values, y: Values, picks: tuple[Values, Values] | None = None) -> Interval:
    """That of `improvement`, both methods resampled by themselves."""
    if picks:
        one, other = (_times(picks, len(of)) for picks, of in zip(picks, (x, y), strict=True))
    else:
        one, other = (_times_picked(len(of), of.shape[2], stream) for stream, of in enumerate((x, y)))
    one, won, other = (each.transpose(2, 0, 1) for each in (one, _won(x, y), other))  # einsum is slow at matrices as small as these
    return ends((one @ won * other).sum(axis=(0, 2)))


@lru_cache(maxsize=8)
def _times_picked(units: int, datasets: int, stream: int) -> Values:
    return _times(picked(units, datasets, stream), units)


def _times(picks: Values, units: int) -> Values:
    """Each unit's share of a repetition's picks of a data set, over all data sets, (repetitions, units, data sets)."""
    repetitions, size, datasets = picks.shape
    places = (np.arange(repetitions)[:, None, None] * units + picks) * datasets + np.arange(datasets)
    found = np.bincount(places.ravel(), minlength=repetitions * units * datasets).reshape(repetitions, units, datasets) / size
    return np.asarray(found / np.sqrt(found.shape[-1]))


@dataclass(frozen=True)
class Scores:
    """What is aggregated: label -> percent of mIoU, (units, runs, data sets), of the methods that have all data sets. lacking: why others
    have none. units: "draw" or "seed". zero_shot: the method that trains nothing, "" where there is none. sign: -1 where less is better."""

    datasets: tuple[str, ...]
    of: Mapping[str, Values]
    lacking: Mapping[str, str]
    units: str
    zero_shot: str
    sign: int = 1

    @property
    def trained(self) -> list[str]:
        """The methods that were tuned here, more than once."""
        return [label for label, of in self.of.items() if len(of) > 1]

    @cached_property
    def best(self) -> str:
        """The tuned method of the best interquartile mean."""
        return max(self.trained, key=lambda label: self.sign * float(iqm(self.of[label])))

    @cached_property
    def normalised(self) -> Mapping[str, Values]:
        """100 x (score - zero-shot) / (the best method's mean - zero-shot), on every data set; none without zero-shot, or where nothing is
        better than it by LEAST_GAIN on some data set: what divides by a gain of tenths says nothing."""
        if not self.zero_shot or min(self.gains) < LEAST_GAIN:
            return {}
        none = self.of[self.zero_shot].mean(axis=(0, 1))
        return {label: self.sign * 100 * (of - none) / np.array(self.gains) for label, of in self.of.items()}

    @cached_property
    def gains(self) -> list[float]:
        """Points by which the best method's mean is ahead of zero-shot, on every data set."""
        means = {label: self.sign * of.mean(axis=(0, 1)) for label, of in self.of.items()}
        return (np.max(list(means.values()), axis=0) - means[self.zero_shot]).tolist()

    def better(self, one: str, other: str) -> tuple[Values, Values]:
        """The runs of two methods as `improvement` compares them: more is better."""
        return self.sign * self.of[one], self.sign * self.of[other]


@dataclass(frozen=True)
class Ranking:
    """The mean rank of every method, 1 is best, over blocks: data sets, or the draws of the only one, of which `over` says how many.
    critical: the difference of mean ranks from which two methods are told apart at 5 %."""

    ranks: Mapping[str, float]
    over: str
    critical: float

    @classmethod
    def of(cls, means: Mapping[str, Values], over: str, sign: int = 1) -> "Ranking":
        """From every method's means in the blocks."""
        blocks = sign * np.stack(list(means.values()), axis=1)
        ranks = dict(zip(means, map(float, mean_ranks(blocks)), strict=True))
        return cls(ranks, f"{len(blocks)} {over}", critical_difference(len(means), len(blocks)))


def ranking(comparable: ComparableCells, published: Published, scores: Scores | None) -> Ranking | None:
    """Of the methods that have all data sets; where there is one data set, over the draws (or seeds) of what is aggregated. None where
    there are fewer than two methods, or blocks."""
    datasets = comparable.datasets
    if len(datasets) == 1 and scores:
        units = max(map(len, scores.of.values()))
        means = {label: np.broadcast_to(of.mean(axis=1)[:, 0], units) for label, of in scores.of.items()}
        return Ranking.of(means, f"{scores.units}s of {comparable.naming.dataset(datasets[0])}", scores.sign)
    values = {label: [comparable.cell(label, name).value for name in datasets] for label in comparable.labels_of(datasets)}
    whole = {label: np.array(of, dtype=float) for label, of in values.items() if None not in of}
    if min(len(whole), len(datasets)) < FEWEST:
        return None
    return Ranking.of({label: whole[label] for label in ordered(whole, published)}, "data sets", comparable.sign)


def aggregated(comparable: ComparableCells, published: Published) -> Scores | None:
    """The scores of comparable cells; None where fewer than two tuned methods have the same two draws, or two seeds, on all data sets.

    Taken are the draws and seeds that every method has on every data set; a method that lacks a data set is left out.
    """
    datasets = tuple(comparable.datasets)
    labels = ordered(comparable.labels_of(datasets), published)
    frame = comparable.frame
    tuned = set(frame.loc[frame["trains"].astype(bool), "label"]) if len(frame) else set()
    lacking = {label: f"lacks {', '.join(gone)}" for label in labels if (gone := _gone(comparable, label))}
    whole = [label for label in labels if label not in lacking and not _undefined(comparable, label)]
    trained = [label for label in whole if label in tuned]
    runs = [set(comparable.scores[label, name]) for label in trained for name in datasets]
    common = set.intersection(*runs) if runs else set()
    draws = sorted({draw for draw, _ in common})
    seeds = sorted(set.intersection(*({seed for of, seed in common if of == draw} for draw in draws))) if draws else []
    by_draw = len(draws) > 1
    if len(trained) < FEWEST or max(len(draws), len(seeds)) < FEWEST or not seeds:
        return None
    found = {}
    for label in whole:
        scores = [comparable.scores[label, name] for name in datasets]
        once = [next(iter(of.values())) for of in scores]
        rows = [[[of[draw, seed] for of in scores] if label in tuned else once for seed in seeds] for draw in draws]
        values = np.array(rows, dtype=float)  # (draws, seeds, data sets)
        values = values if by_draw else values.swapaxes(0, 1)
        found[label] = values if label in tuned else values[:1, :1]
    released = set(frame.loc[frame["released_sha256"] != "", "label"])
    zero_shot = next((label for label in whole if label not in tuned | released), "")
    return Scores(datasets, found, lacking, "draw" if by_draw else "seed", zero_shot, comparable.sign)


def _gone(comparable: ComparableCells, label: str) -> list[str]:
    return [name for name in comparable.datasets if (label, name) not in comparable.scores]


def _undefined(comparable: ComparableCells, label: str) -> bool:
    return any(np.isnan(list(comparable.scores[label, name].values())).any() for name in comparable.datasets)


def aggregates_tables(comparable: ComparableCells, published: Published) -> list[Table]:
    """Aggregates of every method, and their performance profile at THRESHOLDS; none where `aggregated` has none."""
    scores = aggregated(comparable, published)
    if scores is None:
        return []
    against, naming = _against(comparable, scores), comparable.naming
    over = f"{len(scores.datasets)} data sets: " if len(scores.datasets) > 1 else ""
    runs, ranked = scores.of[scores.trained[0]].shape, ranking(comparable, published, scores)
    context = (*comparable.context, ("over", f"{over}{', '.join(map(naming.dataset, scores.datasets))}; {_runs(scores.units, runs)}"))
    notes = (*comparable.warnings, *_meaning(scores, naming, against), *_ranked(ranked), *_lacking(scores, naming), *comparable.notes)
    columns = (Column("", "IQM"), Column("", "normalised", 0), Column("", "P(better) %", 0), Column("", "mean rank", 2))
    rows = tuple(_row(scores, label, against, ranked, naming) for label in scores.of)
    title = f"Aggregates of {comparable.measured.removesuffix(' (%)')}"
    aggregates = Table(comparable.name("aggregates"), title, context, "method", columns, rows, notes)
    return [aggregates, _profile(comparable, scores, context)]


def _runs(units: str, shape: tuple[int, ...]) -> str:
    return f"{counted(shape[0], 'draw')} × {counted(shape[1], 'seed')}" if units == "draw" else counted(shape[0], "seed")


def _against(comparable: ComparableCells, scores: Scores) -> str:
    """The method that the probability of improvement is over."""
    return scores.best if comparable.against in (BEST, PAIRS) or comparable.against not in scores.of else comparable.against


def _row(scores: Scores, label: str, against: str, ranked: Ranking | None, naming: Labels) -> Row:
    of, trained = scores.of[label], label in scores.trained
    normalised = scores.normalised.get(label)
    chance = Cell(reason="-")
    if label != against:
        pair = scores.better(label, against)
        chance = _between(100 * float(improvement(*pair)), improvement_interval(*pair), 100)
    cells = (
        _cell(of, trained),
        Cell(reason="-") if normalised is None else _cell(normalised, trained),
        chance,
        Cell(ranked.ranks[label]) if ranked else Cell(reason="-"),
    )
    return Row(naming.method(label), cells, (("method", label),))


def _cell(scores: Values, bracketed: bool) -> Cell:
    value = float(iqm(scores))
    return _between(value, interval(iqm, scores)) if bracketed else Cell(value)


def _between(value: float, found: Interval, scale: float = 1) -> Cell:
    return Cell(value, low=scale * found.low, high=scale * found.high)


def _ranked(ranked: Ranking | None) -> tuple[str, ...]:
    if ranked is None:
        return ()
    return (
        f"mean rank: over {ranked.over}; methods that differ by less than {ranked.critical:.2f}, Nemenyi's critical difference, are not "
        "told apart.",
    )


def _meaning(scores: Scores, naming: Labels, against: str) -> tuple[str, ...]:
    none, best = naming.method(scores.zero_shot) if scores.zero_shot else "zero-shot", naming.method(against)
    return (
        f"IQM: mean of the middle half of all runs. normalised: the IQM where 0 is {none} and 100 the best method's mean on each data set. "
        f"P(better): chance that a run is {'above' if scores.sign > 0 else 'below'} one of {best}.",
        f"{BRACKETS}95 % interval of the stratified bootstrap over {scores.units}s; test images as they are.",
        *([TOO_SHORT.format(scores.units)] if max(map(len, scores.of.values())) < FEW_UNITS else []),
    )


def _lacking(scores: Scores, naming: Labels) -> tuple[str, ...]:
    said = [f"Left out: {naming.method(label)}, which {why}." for label, why in scores.lacking.items()]
    return (*said, *_not_normalised(scores, naming))


def _not_normalised(scores: Scores, naming: Labels) -> tuple[str, ...]:
    if scores.normalised:
        return ()
    if not scores.zero_shot:
        return ("Not normalised: a method without training, such as sam, is needed.",)
    small = [f"{gain:.1f} on {naming.dataset(name)}" for name, gain in zip(scores.datasets, scores.gains, strict=True) if gain < LEAST_GAIN]
    return (f"Not normalised: the best method must be {LEAST_GAIN:g} point or more above zero-shot, and is {', '.join(small)}.",)


def _profile(comparable: ComparableCells, scores: Scores, context: Facts) -> Table:
    rows = []
    for label, of in scores.of.items():
        shares, repeated = above(of, THRESHOLDS), above(resampled(of, picked(of.shape[0], of.shape[2])), THRESHOLDS)
        brackets = [ends(repeated[:, i]) for i in range(len(THRESHOLDS))]
        cells = [
            _between(100 * float(share), found, 100) if label in scores.trained else Cell(100 * float(share))
            for share, found in zip(shares, brackets, strict=True)
        ]
        rows.append(Row(comparable.naming.method(label), tuple(cells), (("method", label),)))
    columns = tuple(Column("", f"> {threshold}", 0) for threshold in THRESHOLDS)
    notes = (f"How many of 100 runs, on all data sets alike, are above a {comparable.quantity} (%).",)
    return Table(comparable.name("profile"), "Performance profile", context, "method", columns, tuple(rows), notes)
