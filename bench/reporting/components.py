"""Where the variance of a pooled IoU comes from, and what other numbers of draws, seeds and images would make of it.

The model is that of `bench.reporting.statistics`, its terms one by one: IoU(method, draw, seed) = mean(method) + draw + method x draw +
seed within these + test images. The first three are told by the mean squares of a balanced design, the images by the jackknife. An interval
of a variance is that of its generalised pivot (Weerahandi 1993, doi 10.2307/2290779): the mean squares over independent chi-squares, whose
distribution is sampled.

What images do differently to every draw and seed is in the variance of these, and becomes less with more images; `Spread` has it apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaincinv, ndtr

from bench.reporting.statistics import ALPHA, Counts, Estimate, Interval, Pooled, Run, Values, influences, pooled

SAMPLES = 20_000  # of a pivot
FEWEST_DRAWS = 2
POWER = 0.8
MOST_DRAWS, SEEDS = 200, (1, 2, 3, 5, 10)  # of a design that is looked for
DRAW, METHOD_DRAW, SEED, IMAGES = "draw", "method × draw", "seed", "test images"


@dataclass(frozen=True)
class MeanSquares:
    """Of y (methods, draws, seeds, …), trailing axes summed: of draws, of methods on draws, of seeds; 0 where there is only one."""

    methods: int
    draws: int
    seeds: int
    of_draws: float
    of_methods: float
    of_seeds: float

    @classmethod
    def of(cls, y: Values) -> "MeanSquares":
        """Two draws are needed."""
        methods, draws, seeds = y.shape[:3]
        cells = y.mean(axis=2)
        together = cells.mean(axis=0)
        apart = cells - together
        apart = apart - apart.mean(axis=1, keepdims=True)
        of_draws = methods * seeds * np.square(together - together.mean(axis=0)).sum() / (draws - 1)
        of_methods = seeds * np.square(apart).sum() / max(1, (methods - 1) * (draws - 1))
        of_seeds = np.square(y - cells[:, :, None]).sum() / max(1, methods * draws * (seeds - 1))
        return cls(methods, draws, seeds, float(of_draws), float(of_methods), float(of_seeds))

    @property
    def df(self) -> tuple[int, int, int]:
        """The degrees of freedom of the three."""
        return self.draws - 1, (self.methods - 1) * (self.draws - 1), self.methods * self.draws * (self.seeds - 1)

    def variances(self, squares: tuple[Values | float, Values | float, Values | float] | None = None) -> tuple[Values, Values, Values]:
        """Of draw, method x draw and seed, at least 0, from these mean squares or others. What cannot be told apart is in the first of
        them: methods of draws where there is one method, seeds where there is one."""
        of_draws, of_methods, of_seeds = squares or (self.of_draws, self.of_methods, self.of_seeds)
        below = of_methods if self.methods > 1 else of_seeds
        found = ((of_draws - below) / (self.methods * self.seeds), (of_methods - of_seeds) / self.seeds, of_seeds)
        of_draw, of_method, of_seed = (np.maximum(0.0, variance) for variance in found)
        return of_draw, of_method, of_seed

    def intervals(self) -> tuple[Interval | None, Interval | None, Interval | None]:
        """95 % intervals of the three variances; None of what is in another."""
        rng, df = np.random.default_rng(0), self.df
        squares = (self.of_draws, self.of_methods, self.of_seeds)
        pivots = [square * n / rng.chisquare(n, SAMPLES) if n else 0.0 for square, n in zip(squares, df, strict=True)]
        found = self.variances((pivots[0], pivots[1], pivots[2]))
        first, second, third = (ends(of) if n else None for of, n in zip(found, df, strict=True))
        return first, second, third


def ends(samples: Values) -> Interval:
    """The middle 95 % of samples."""
    low, high = np.quantile(samples, (ALPHA / 2, 1 - ALPHA / 2))
    return Interval(float(low), float(high))


def grid(parts: Sequence[Counts]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The draws that all parts have, and the seeds that all parts have of each of them."""
    runs = set.intersection(*(set(part.runs) for part in parts))
    draws = sorted({int(str(draw)) for draw, _ in runs})
    seeds = set.intersection(*({seed for of, seed in runs if of == draw} for draw in draws)) if draws else set()
    return tuple(draws), tuple(sorted(seeds))


def on_grid(counts: Counts, draws: Sequence[int], seeds: Sequence[int]) -> Counts:
    """The runs of a grid, draws outermost; what trains nothing has its one run for all of them."""
    runs: list[Run] = [(draw, seed) for draw in draws for seed in seeds]
    if counts.trains:
        return counts.of_runs(runs)
    once = [np.repeat(of[..., :1, :], len(runs), axis=-2) for of in (counts.intersections, counts.unions)]
    return Counts(tuple(runs), counts.images, once[0], once[1], counts.trains)


@dataclass(frozen=True)
class Split:
    """The variance of one run of a data set, in points²: component -> (estimate, interval), None where it cannot be told."""

    parts: Mapping[str, tuple[float, Interval | None] | None]
    draws: int
    seeds: int
    methods: int
    images: int

    @classmethod
    def of(cls, methods: Sequence[Counts]) -> "Split | None":
        """Of what trains, on the draws and seeds that all methods have; None where these are fewer than two draws."""
        draws, seeds = grid(methods) if methods else ((), ())
        if len(draws) < FEWEST_DRAWS or not seeds:
            return None
        whole = [on_grid(counts, draws, seeds) for counts in methods]
        values = np.stack([pooled(counts).reshape(len(draws), len(seeds)) for counts in whole])
        squares = MeanSquares.of(values)
        found = zip((DRAW, METHOD_DRAW, SEED), squares.variances(), squares.intervals(), strict=True)
        parts: dict[str, tuple[float, Interval | None] | None] = {name: (float(v), i) if i else None for name, v, i in found}
        pools = [Pooled.of(counts) for counts in whole]
        variance, df = float(np.mean([pool.images_variance() for pool in pools])), _images_df(pools)
        parts[IMAGES] = variance, Interval(*(float(variance * df / _chi2(q, df)) for q in (1 - ALPHA / 2, ALPHA / 2)))
        return cls(parts, len(draws), len(seeds), len(methods), len(whole[0].images))


def _images_df(pools: Sequence[Pooled]) -> float:
    """Of the images' variance: Satterthwaite's, from how unequally it comes from the images, of which some are larger or harder."""
    squares = np.mean([np.square(pool.influences.mean(axis=-2)) for pool in pools], axis=0)  # (images,)
    scatter = len(squares) * squares.var(ddof=1)
    return float(min(pools[0].df, 2 * squares.sum() ** 2 / scatter)) if scatter else float(pools[0].df)


def _chi2(q: Values | float, df: Values | float) -> Values:
    """The q quantile of chi squared, without `scipy.stats`, which takes longer to load than a table takes."""
    return np.asarray(2 * gammaincinv(np.asarray(df) / 2, q))


@dataclass(frozen=True)
class Design:
    """How many draws, seeds of each, and test images."""

    draws: int
    seeds: int
    images: int

    @property
    def runs(self) -> str:
        """Its draws and seeds in words."""
        return f"{self.draws} draws with {self.seeds} seed{'s' if self.seeds > 1 else ''} each"


@dataclass(frozen=True)
class Spread:
    """What the difference of two methods varies by, in points². draw, seed: of one draw, of one seed within it, by themselves;
    image_draw, image_seed: what `images` test images add to these; image: what they add to the mean of all."""

    difference: float
    draw: float
    seed: float
    image: float
    image_draw: float
    image_seed: float
    images: int
    seeds: int = 2  # known of each draw: with one, what more of them would do is not known

    @classmethod
    def of(cls, a: Counts, b: Counts) -> "Spread | None":
        """Of a - b on the draws and seeds that both have; None where these are fewer than two draws."""
        trained = [counts for counts in (a, b) if counts.trains]
        draws, seeds = grid(trained) if trained else ((), ())
        if len(draws) < FEWEST_DRAWS or not seeds:
            return None
        one, other = (on_grid(counts, draws, seeds) for counts in (a, b))
        shape = (1, len(draws), len(seeds))
        total = MeanSquares.of((pooled(one) - pooled(other)).reshape(shape))
        of_images = MeanSquares.of((influences(one) - influences(other)).reshape(*shape, -1))
        (draw, _, seed), (image_draw, _, image_seed) = total.variances(), of_images.variances()
        between = Pooled.of(one).minus(Pooled.of(other))
        return cls(
            float(between.value),
            float(np.maximum(0, draw - image_draw)),
            float(np.maximum(0, seed - image_seed)),
            float(between.images_variance()),
            float(image_draw),
            float(image_seed),
            len(one.images),
            len(seeds),
        )

    def power(self, design: Design, difference: float | None = None) -> float:
        """The chance that a design tells the two apart at 5 %, if they differ by as much as was found, or by `difference`: by integration
        over what it may show of its two variances."""
        scale = self.images / design.images
        of_runs = self.draw + scale * self.image_draw + (self.seed + scale * self.image_seed) / design.seeds
        true = (of_runs / design.draws, scale * self.image)
        df = (design.draws - 1, design.images - 1)
        seen = [variance * _chi2((np.arange(n) + 0.5) / n, k) / k for variance, k, n in zip(true, df, (200, 9), strict=True)]
        runs, images = np.broadcast_arrays(seen[0][:, None], seen[1])
        half = Estimate(np.zeros(runs.shape), runs, np.asarray(float(df[0])), images, float(df[1])).half()
        delta = abs(self.difference if difference is None else difference)
        error = max(float(np.sqrt(sum(true))), 1e-12)
        return float((ndtr((delta - half) / error) + ndtr((-delta - half) / error)).mean())

    def smallest(self, images: int, difference: float | None = None) -> Design | None:
        """The design of fewest runs that reaches 80 % with that many images; None where MOST_DRAWS draws do not."""
        found = [design for seeds in SEEDS[: 1 if self.seeds < 2 else None] if (design := self._fewest(seeds, images, difference))]
        return min(found, key=lambda design: (design.draws * design.seeds, -self.power(design, difference)), default=None)

    def _fewest(self, seeds: int, images: int, difference: float | None) -> Design | None:
        low, high = FEWEST_DRAWS - 1, MOST_DRAWS
        if self.power(Design(high, seeds, images), difference) < POWER:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            reached = self.power(Design(middle, seeds, images), difference) >= POWER
            low, high = (low, middle) if reached else (middle, high)
        return Design(high, seeds, images)

    def detectable(self, design: Design) -> float:
        """The smallest difference in points that a design tells apart with 80 % power."""
        low, high = 0.0, 200.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.power(design, middle) >= POWER else (middle, high)
        return high
