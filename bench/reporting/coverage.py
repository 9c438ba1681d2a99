"""Whether intervals hold the truth and equal methods pass as equal: simulations of test images, draws and seeds, put through
`bench.reporting.statistics`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bench.reporting.components import Design, Spread
from bench.reporting.statistics import ALPHA, Column, Counts, Pooled, Run, Values, holm
from bench.reporting.table import Cell, Row, Table
from bench.reporting.table import Column as Heading

TRUTH = 60.0  # percent
IMAGES = 40
CHUNK = 250  # repetitions at once
HELD, FALSE = (93.0, 97.0), (3.0, 7.0)  # percent: what coverage and false positives may be
DESIGNS = ((1, 1), (1, 2), (1, 3), (1, 5), (1, 10), (2, 1), (2, 3), (2, 10), (3, 1), (3, 5), (5, 1), (5, 5), (10, 1), (10, 10))
DESIGNS_OF_SIX = ((1, 2), (1, 3), (1, 5), (2, 1), (2, 3), (3, 1), (5, 1))
POWERS = (75.0, 85.0)  # percent: what simulated power may be where 80 were promised
POWER_DESIGNS = ((2, 1), (2, 3), (3, 1), (3, 3), (5, 1), (5, 5), (10, 1), (10, 3), (20, 1))
POWER_VARIANCES = ((0, 0.3), (0, 1), (1, 0), (1, 1), (1, 10), (10, 0), (10, 10))
REPETITIONS = {1: 4000, 2: 8000, 3: 4000, 5: 2000, 10: 1500}  # by draws, or by seeds of one draw
CONTEXT = (("test images", str(IMAGES)), ("level", "95 %"))
VARIANCES = ((0, 0), (0, 0.3), (0.3, 0), (0, 1), (1, 0), (1, 1), (0, 10), (10, 0), (1, 10), (10, 1), (10, 10))  # of draws and seeds
EQUAL, UNEQUAL = (1.0,) * 6, (0.5, 1.0, 1.0, 1.0, 1.0, 2.0)  # factors of the standard deviation that draws and seeds have
COLUMNS = ((0.0, EQUAL), (0.9, EQUAL), (0.0, UNEQUAL))


@dataclass(frozen=True)
class World:
    """What is simulated. draw, seed: variances, that of the images in a mean being 1. common: the share of the draws' that all methods
    have together. std: a factor a method. images: how many; each of them varies as it does among IMAGES."""

    draws: int
    seeds: int
    draw: float
    seed: float
    common: float = 0.0
    std: tuple[float, ...] = (1.0, 1.0)
    images: int = IMAGES

    def methods(self, rng: np.random.Generator, repetitions: int) -> tuple[list[Counts], Values]:
        """Equally good methods on the same images, and what their intervals should hold, (repetitions, methods)."""
        shape, std = (repetitions, len(self.std)), np.array(self.std)[:, None, None]
        common = 1.0 if self.draws == 1 else self.common  # one draw: equal methods are equal on this one
        together = rng.normal(0, np.sqrt(self.draw * common), (repetitions, 1, self.draws, 1))
        draws = together + std * rng.normal(0, np.sqrt(self.draw * (1 - common)), (*shape, self.draws, 1))
        seeds = std * rng.normal(0, np.sqrt(self.seed), (*shape, self.draws, self.seeds))
        truth = np.broadcast_to(TRUTH + (draws[..., 0, 0] if self.draws == 1 else 0), shape)
        truth = truth + (seeds[..., 0, 0] if self.draws == self.seeds == 1 else 0)
        sizes = rng.gamma(4.0, 100.0, (repetitions, 1, 1, self.images))  # a ratio of sums has 1.25 times the variance of a mean then
        hardness = rng.normal(0, np.sqrt(0.8 * IMAGES / 1.25), (repetitions, 1, 1, self.images))
        liking = rng.normal(0, np.sqrt(0.2 * IMAGES / 1.25), (*shape, 1, self.images))
        runs = (draws + seeds).reshape(*shape, -1, 1)
        iou = TRUTH + runs + hardness + liking + rng.normal(0, 1, (*shape, runs.shape[2], self.images))
        names: tuple[Run, ...] = tuple((draw, seed) for draw in range(self.draws) for seed in range(self.seeds))
        images, unions = tuple(map(str, range(self.images))), np.broadcast_to(sizes, iou.shape)
        return [Counts(names, images, iou[:, m] * sizes[:, 0] / 100, unions[:, m]) for m in range(shape[1])], truth

    @property
    def spread(self) -> Spread:
        """What the difference of two equally varying methods varies by, by construction."""
        of_images = 1.25 * IMAGES / self.images / IMAGES  # of a mean over them, as multiples of one image's variance
        draw = 2 * self.draw * (1 - self.common)
        return Spread(0.0, draw, 2 * self.seed, 2 * 0.2 * IMAGES / 1.25 * of_images, 0.0, 2 * of_images, self.images)

    def told_apart(self, difference: float, repetitions: int) -> float:
        """The share of simulations in which the first method, better by so many points, is told from the second at 5 %."""
        rng, told = np.random.default_rng(2), []
        for _ in range(-(-repetitions // CHUNK)):
            (one, other), _truth = self.methods(rng, CHUNK)
            better = replace(one, intersections=one.intersections + difference / 100 * one.unions)
            found = Column({"a": Pooled.of(better), "b": Pooled.of(other)}).difference("a", "b")
            told.append(np.abs(found.value) > found.half())
        return float(np.concatenate(told).mean())


@dataclass(frozen=True)
class Rates:
    """In percent: how often intervals hold the truth, over methods and of the worst; how often equal methods differ, one by one and
    any of those that are compared with the first after Holm's correction (NaN where one run cannot tell); half an interval's length."""

    held: float
    worst: float
    false: float
    any_false: float
    half: float

    @property
    def outside(self) -> bool:
        """Whether a rate is not what it may be: intervals on average over methods, and equal methods, which several share fewer of."""
        least = FALSE[0] if np.isnan(self.any_false) else 0.0
        return not HELD[0] <= self.held <= HELD[1] or self.false < least or max(self.false, np.nan_to_num(self.any_false)) > FALSE[1]


def rates(world: World, repetitions: int) -> Rates:
    """Simulates a world."""
    rng = np.random.default_rng(1)
    found = [list(_chunk(*world.methods(rng, CHUNK))) for _ in range(-(-repetitions // CHUNK))]
    held, false, any_false, half = (np.concatenate(parts) for parts in zip(*found, strict=True))
    held_by, false_by = held.mean(axis=0), false.mean()
    return Rates(100 * held_by.mean(), 100 * held_by.min(), 100 * false_by, 100 * any_false.mean(), float(np.median(half)))


def _chunk(methods: list[Counts], truth: Values) -> Iterator[Values]:
    column = Column({str(m): Pooled.of(counts) for m, counts in enumerate(methods)})
    means = [column.mean(name) for name in column.methods]
    pairs = [column.difference("0", name) for name in list(column.methods)[1:]]
    yield np.stack([np.abs(mean.value - truth[:, m]) <= mean.half() for m, mean in enumerate(means)], axis=-1)
    none = np.full((len(truth), 1), np.nan)
    yield np.stack([np.abs(pair.value) > pair.half() for pair in pairs], axis=-1) if column.tells("0", "1") else none
    several = len(pairs) > 1 and column.tells("0", "1")
    yield np.array([[min(holm(list(p))) < ALPHA] for p in np.stack([pair.p for pair in pairs], axis=-1)]) if several else none
    yield np.stack([mean.half() for mean in means], axis=-1)


def tables() -> tuple[Table, Table, Table]:
    """Two methods by themselves, columns of six that share what their runs tell, and power; every rate that is outside has a note."""
    return _of_two(), _of_six(), _of_power()


def _of_power() -> Table:
    rows = []
    for draws, seeds in POWER_DESIGNS:
        worlds = [World(draws, seeds, *variances) for variances in POWER_VARIANCES]
        gaps = [world.spread.detectable(Design(draws, seeds, IMAGES)) for world in worlds]
        shares = [100 * world.told_apart(gap, 2000) for world, gap in zip(worlds, gaps, strict=True)]
        outside = f"OUTSIDE what may be, {POWERS[0]:.0f} to {POWERS[1]:.0f} %."
        cells = [Cell(share, notes=() if POWERS[0] <= share <= POWERS[1] else (outside,)) for share in shares]
        rows.append(Row(f"{draws} x {seeds}", tuple(cells)))
    heads = tuple(Heading("", f"{draw}, {seed}") for draw, seed in POWER_VARIANCES)
    notes = (
        "Of 100 pairs of methods that differ by what `bench.power` says a design tells apart with 80 % power: how many it told apart. "
        "Columns: the variance of draws and of seeds, as multiples of what the test images give a mean.",
    )
    return Table("power", "Power where 80 % were promised (%)", CONTEXT, "draws x seeds", heads, tuple(rows), notes)


def _of_two() -> Table:
    rows = []
    for draws, seeds in DESIGNS:
        worlds = [World(draws, seeds, *variances) if draws > 1 or not variances[0] else None for variances in VARIANCES]
        cells = [_two(rates(world, REPETITIONS[draws if draws > 1 else seeds])) if world else Cell() for world in worlds]
        rows.append(Row(f"{draws} x {seeds}", tuple(cells)))
    heads = tuple(Heading("", f"{draw}, {seed}") for draw, seed in VARIANCES)
    notes = (
        "Of a method by itself: how many of 100 intervals hold the truth; behind the stroke, how many of 100 pairs of equal methods differ "
        "at 5 %. Columns: the variance of draws and of seeds, as multiples of what the test images give a mean. One draw: the truth of "
        "this draw, so that its variance is of no account, and methods that are equal on it; one run: the truth of this run.",
    )
    return Table("coverage", "Intervals that hold and equal methods that differ (%)", CONTEXT, "draws x seeds", heads, tuple(rows), notes)


def _of_six() -> Table:
    rows = []
    for draws, seeds in DESIGNS_OF_SIX:
        for common, std in COLUMNS:
            if draws == 1 and common:
                continue
            world = World(draws, seeds, 1.0, 1.0, common, std)
            found, alone = rates(world, 1000), rates(replace(world, std=(1.0, 1.0)), 1000).half
            said = f"{draws} x {seeds}, {'equal' if std == EQUAL else 'unequal'}" + (", draws alike" if common else "")
            values = (found.held, found.worst, found.false, found.any_false, found.half, alone)
            rows.append(Row(said, tuple(Cell(value, notes=_outside(found)) for value in values)))
    heads = tuple(Heading("", name) for name in ("hold", "of the worst method", "differ", "any differs", "half length", "without sharing"))
    notes = (
        "Draws and seeds vary as the images do. Equal: all methods equally. Unequal: the standard deviations are half of the others for "
        "one method and twice for another, which is the worst. Draws alike: nine tenths of their variance is common to all methods. "
        "Differ: from the first, each at 5 %; any: after Holm's correction. Half length: the median, in points.",
    )
    return Table("columns", "Six methods of a column that share what runs tell (%)", CONTEXT, "draws x seeds", heads, tuple(rows), notes)


def _two(found: Rates) -> Cell:
    differ = "-" if np.isnan(found.false) else f"{found.false:.1f}"
    return Cell(reason=f"{found.held:.1f} / {differ}", notes=_outside(found))


def _outside(found: Rates) -> tuple[str, ...]:
    allowed = f"{HELD[0]:.0f} to {HELD[1]:.0f} % and {FALSE[0]:.0f} to {FALSE[1]:.0f} %"
    return (f"OUTSIDE what may be, {allowed}.",) if found.outside else ()
