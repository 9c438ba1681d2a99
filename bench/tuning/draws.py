"""What is tried: a search space for each method, and the trials drawn from it by one rule.

A draw is a function of the seed, the method and its number alone: other methods, and how many trials there are, change nothing in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import numpy as np

from bench.errors import RequestError
from bench.grid.registry import METHODS
from bench.grid.space import LogUniform, Space
from bench.grid.spec import MethodChoice, choose_method


def _halton(trials: int, dimensions: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.stats import qmc  # takes longer to load than --help may take

    points: np.ndarray = qmc.Halton(dimensions, rng=rng).random(trials)
    return points


# "halton" covers the space more evenly than independent draws do, which counts with so few of them; both are log-uniform.
Sampler = Callable[[int, int, np.random.Generator], np.ndarray]
SAMPLERS: Mapping[str, Sampler] = {
    "halton": _halton,
    "random": lambda trials, dimensions, rng: rng.random((trials, dimensions)),
}


@dataclass(frozen=True)
class Draw:
    """What a trial tries: the method with its parameters, and a rate for each group. No rates: those of the protocol."""

    number: int
    method: MethodChoice
    rates: Mapping[str, float]


def space_of(method: MethodChoice, rates: LogUniform, only_rates: bool) -> Space:
    """The range of the rate of each group, as "lr.<group>", and the parameters that the method lets be tried, but for those that the
    user gave another value than the default. RequestError for a parameter that it does not have."""
    cls = METHODS.get(method.name)
    declared: Space = {} if only_rates else getattr(cls, "space", {})
    defaults = {f.name: f.default for f in fields(cls)}
    for name in declared:
        if name not in defaults:
            raise RequestError(f"The method {method.name} would tune {name}, which is none of its parameters: {', '.join(defaults)}.")
    free = {name: dimension for name, dimension in declared.items() if dict(method.parameters).get(name) == defaults[name]}
    return {**{f"lr.{group}": rates for group in method.groups}, **free}


def draws(method: MethodChoice, space: Space, trials: int, seed: int, sampler: str) -> list[Draw]:
    """The trials of a method: first the protocol's own rates and its own parameters, then draws from the space."""
    number = int.from_bytes(sha256(f"{seed}\0{method.label}".encode()).digest()[:8], "big")
    shares = SAMPLERS[sampler](trials, len(space), np.random.default_rng(number))[: trials - 1]
    drawn = [{name: dimension.at(float(u)) for (name, dimension), u in zip(space.items(), row, strict=True)} for row in shares]
    return [Draw(0, method, {}), *(_draw(number, method, values) for number, values in enumerate(drawn, 1))]


def _draw(number: int, method: MethodChoice, values: Mapping[str, Any]) -> Draw:
    parameters = {name: value for name, value in values.items() if not name.startswith("lr.")}
    tried = choose_method(METHODS.get(method.name), {**dict(method.parameters), **parameters}) if parameters else method
    return Draw(number, tried, {name.removeprefix("lr."): value for name, value in values.items() if name.startswith("lr.")})
