"""Variances by their sources against simulated truth, and power against simulated experiments."""

from dataclasses import replace

import numpy as np
import pytest

from bench.reporting.components import DRAW, IMAGES, METHOD_DRAW, SEED, Design, MeanSquares, Split, Spread
from bench.reporting.coverage import IMAGES as SIMULATED
from bench.reporting.coverage import POWERS, World
from bench.reporting.statistics import Counts


def simulated(rng: np.random.Generator, variances: tuple[float, float, float], shape: tuple[int, int, int]) -> np.ndarray:
    """Values (methods, draws, seeds) of one experiment."""
    methods, draws, _ = shape
    of_draw, of_method, of_seed = np.sqrt(variances)
    return rng.normal(0, of_draw, (1, draws, 1)) + rng.normal(0, of_method, (methods, draws, 1)) + rng.normal(0, of_seed, shape)


@pytest.mark.parametrize("truth", [(4.0, 1.0, 0.5), (0.5, 2.0, 3.0), (9.0, 0.2, 0.2)])
def test_the_variances_are_right_on_average_and_their_intervals_hold(truth: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(1)
    found = [MeanSquares.of(simulated(rng, truth, (4, 10, 3))) for _ in range(300)]
    assert np.mean([of.variances() for of in found], axis=0) == pytest.approx(truth, rel=0.2)
    held = [[i is not None and i.holds(value) for i, value in zip(of.intervals(), truth, strict=True)] for of in found[:150]]
    assert (np.mean(held, axis=0) > 0.9).all()


def test_mean_squares_are_those_of_the_classical_table() -> None:
    y = np.array([[[1.0, 3.0], [2.0, 2.0]], [[5.0, 7.0], [9.0, 11.0]]])  # by hand: 2 methods, 2 draws, 2 seeds
    found = MeanSquares.of(y)
    assert (found.of_draws, found.of_methods, found.of_seeds) == pytest.approx((8.0, 8.0, 1.5))
    assert found.df == (1, 1, 4)
    assert found.variances() == pytest.approx((0.0, 3.25, 1.5))


def test_what_cannot_be_told_apart_is_in_the_row_above() -> None:
    rng = np.random.default_rng(2)
    alone = MeanSquares.of(simulated(rng, (4.0, 1.0, 0.5), (1, 400, 3)))
    assert alone.variances() == pytest.approx((5.0, 0.0, 0.5), rel=0.15) and alone.intervals()[1] is None
    once = MeanSquares.of(simulated(rng, (4.0, 1.0, 0.5), (4, 400, 1)))
    assert once.variances() == pytest.approx((4.0, 1.5, 0.0), rel=0.2) and once.intervals()[2] is None


def one_of(counts: Counts) -> Counts:
    """The first repetition of a simulation."""
    return Counts(counts.runs, counts.images, counts.intersections[0], np.broadcast_to(counts.unions, counts.intersections.shape)[0])


def test_a_run_is_split_into_draw_method_seed_and_images() -> None:
    world = World(60, 3, 4.0, 2.0, common=0.75, std=(1.0,) * 4)
    methods, _ = world.methods(np.random.default_rng(3), 1)
    found = Split.of([one_of(of) for of in methods])
    assert found is not None and (found.methods, found.draws, found.seeds, found.images) == (4, 60, 3, SIMULATED)
    of = {name: part[0] for name, part in found.parts.items() if part}
    assert of[DRAW] == pytest.approx(3.0, rel=0.5) and of[METHOD_DRAW] == pytest.approx(1.0, rel=0.3)
    assert of[SEED] == pytest.approx(2.0, rel=0.2) and of[IMAGES] == pytest.approx(1.0, rel=0.5)
    assert Split.of([one_of(world.methods(np.random.default_rng(3), 1)[0][0]).of_runs([(0, 0), (0, 1)])]) is None


def test_the_interval_of_the_images_holds_where_few_large_ones_weigh_most() -> None:
    rng, held = np.random.default_rng(5), []
    for _ in range(200):
        sizes = rng.lognormal(7, 0.5, 64)
        iou = 60 + rng.normal(0, 10, 64) + rng.normal(0, 1, (2, 3, 1)) + rng.normal(0, 2, (2, 3, 64))
        runs = tuple((draw, 0) for draw in range(3))
        found = Split.of([Counts(runs, tuple(map(str, range(64))), of / 100 * sizes, np.broadcast_to(sizes, of.shape)) for of in iou])
        assert found is not None
        held.append(found.parts[IMAGES][1].holds(100 * np.exp(0.25) / 64))  # type: ignore[index, union-attr]
    assert np.mean(held) > 0.9  # chi-squared with a degree of freedom an image: 0.81


@pytest.mark.parametrize("images", [SIMULATED, 2 * SIMULATED])
def test_the_suggested_design_has_the_power_that_it_promises(images: int) -> None:
    """From the cells of one experiment to the smallest design with these images, which is then simulated."""
    pilot = World(40, 3, 2.0, 2.0, images=SIMULATED)
    one, other = (one_of(of) for of in pilot.methods(np.random.default_rng(4), 1)[0])
    spread = Spread.of(one, other)
    assert spread is not None and spread.draw == pytest.approx(pilot.spread.draw, rel=0.4)
    assert spread.image_seed == pytest.approx(pilot.spread.image_seed, rel=0.2)
    exact = replace(spread, draw=pilot.spread.draw, seed=pilot.spread.seed, image=pilot.spread.image)
    design = exact.smallest(images, difference=3.0)
    assert design is not None and design.draws > 5
    simulated = World(design.draws, design.seeds, 2.0, 2.0, images=images)
    assert POWERS[0] <= 100 * simulated.told_apart(3.0, 1000) <= POWERS[1]


def test_power_grows_with_everything_and_is_the_level_where_nothing_differs() -> None:
    spread = World(5, 2, 1.0, 1.0).spread
    assert 0.02 < spread.power(Design(5, 2, 40), 0.0) < 0.06
    for more in (Design(6, 2, 40), Design(5, 3, 40), Design(5, 2, 80)):
        assert spread.power(more, 2.0) > spread.power(Design(5, 2, 40), 2.0)
    detectable = spread.detectable(Design(5, 2, 40))
    assert spread.power(Design(5, 2, 40), detectable) == pytest.approx(0.8, abs=1e-3)
    assert spread.smallest(40, 0.01) is None and replace(spread, seeds=1).smallest(40, 2.0).seeds == 1  # type: ignore[union-attr]
