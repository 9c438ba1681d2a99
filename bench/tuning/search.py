"""Trials as cells: trained on the support images, scored on held-out training images, and the best one chosen.

A trial is the protocol with other rates, `evaluation_split = "val"` and one evaluation, of the last weights; its cells lie in a store of
their own, `results/tuned/<name>/`, apart from all tables. Test images are not asked for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import mean
from typing import Annotated, Any, Literal

from bench.errors import RequestError, need_known
from bench.grid.files import file_sha256
from bench.grid.plan import Request, choose_methods, groups_by_method, names_of, protocol_of, specs_of
from bench.grid.registry import DATASETS
from bench.grid.space import RATES, LogUniform, Space
from bench.grid.spec import MethodChoice, RunSpec, parse_call
from bench.grid.store import ResultStore
from bench.grid.toml_reader import kinds
from bench.grid.tuned import check_name
from bench.model.backbones import checkpoint_path
from bench.running.grid import Options
from bench.tuning.draws import SAMPLERS, Draw, draws, space_of
from bench.types import SEED, Range

LAST_RUNG = 2  # halving ends with at least so many trials, of full length


@dataclass(frozen=True)
class Search:
    """What is tuned, and with which budget; RequestError for what is not allowed.

    request: of one number of shots. per: "grid" chooses once for all data sets, "dataset" for each. halving: all trials are trained for a
    part of the epochs, the better half of them for twice as many, and so on. only_rates: leaves the methods' parameters as they are.
    images: of those held out, so many; 0: all.
    """

    name: str
    request: Request
    trials: Annotated[int, Range(1, 1000)] = 12
    per: Literal["grid", "dataset"] = "grid"
    sampler: str = "halton"
    seed: Annotated[int, SEED] = 0
    rates: LogUniform = RATES
    halving: bool = False
    only_rates: bool = False
    images: Annotated[int, Range(0)] = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        for name in ("trials", "seed", "images"):
            for fault in (check(getattr(self, name)) for check in kinds(Search)[name].__metadata__):
                if fault:
                    raise RequestError(f"--{name} {getattr(self, name)} {fault}.")
        need_known("sampler", SAMPLERS, self.sampler)
        if self.halving and self.trials < 2 * LAST_RUNG:
            raise RequestError(f"--halving with --trials {self.trials}: at least {2 * LAST_RUNG} are needed, or no half is left behind.")
        if "," in self.request.shots.strip(","):
            raise RequestError(f"--shots {self.request.shots}: rates are tuned for one number of shots at a time.")
        if "lr" in parse_call(self.request.protocol)[1]:
            raise RequestError(f"--protocol {self.request.protocol} has an lr, which trials choose: --rates LOW:HIGH says from where.")
        if protocol_of(self.request.protocol).tuned:
            raise RequestError(f"--protocol {self.request.protocol} is tuned already: name the one that it comes from.")
        if not self.methods:
            raise RequestError(f"None of the methods {self.request.methods} trains anything, so there is nothing to tune.")
        _ = self.draws  # a value in a method’s space that the method refuses is told here

    @cached_property
    def methods(self) -> tuple[MethodChoice, ...]:
        """The methods that have something to train."""
        return tuple(method for method in choose_methods(self.request.methods, self.request.backbone) if method.trains)

    @cached_property
    def spaces(self) -> Mapping[str, Space]:
        """What is tried, by the method's label."""
        return {method.label: space_of(method, self.rates, self.only_rates) for method in self.methods}

    @cached_property
    def draws(self) -> Mapping[str, Sequence[Draw]]:
        """The trials, by the method's label."""
        return {m.label: draws(m, self.spaces[m.label], self.trials, self.seed, self.sampler) for m in self.methods}

    @cached_property
    def places(self) -> tuple["Place", ...]:
        """For what there is a choice each."""
        names = tuple(dict.fromkeys(names_of(self.request.datasets, DATASETS)))
        of = [names] if self.per == "grid" else [(name,) for name in names]
        return tuple(Place(method.label, datasets) for datasets in of for method in self.methods)

    @property
    def rungs(self) -> int:
        """How often trials are trained; 1 without halving."""
        return int(math.log2(self.trials / LAST_RUNG)) + 1 if self.halving else 1


@dataclass(frozen=True)
class Place:
    """A method, by its label, on the data sets for which it gets one choice."""

    method: str
    datasets: tuple[str, ...]


@dataclass
class Trials:
    """The cells of a search. part: of the epochs that a rung trains for is 1 / part."""

    search: Search
    options: Options  # `out` is the trials' own store
    store: ResultStore = field(init=False)

    def __post_init__(self) -> None:
        self.store = ResultStore(self.options.out)
        self.checkpoint = checkpoint_path(self.search.request.backbone, self.options.pretrained, self.options.checkpoint)
        self.sha256 = file_sha256(self.checkpoint, self.options.out / "cache")
        self._groups = groups_by_method()
        self._cells: dict[tuple[str, int, str, int], list[RunSpec]] = {}

    def cells(self, method: str, number: int, dataset: str, part: int) -> list[RunSpec]:
        """The cells of a trial on a data set, a draw of shots and seed each."""
        key = (method, number, dataset, part)
        if key not in self._cells:
            self._cells[key] = self._specs(self.search.draws[method][number], dataset, part)
        return self._cells[key]

    def _specs(self, draw: Draw, dataset: str, part: int) -> list[RunSpec]:
        asked = replace(self.search.request, methods=draw.method.label, datasets=dataset)
        whole = self._planned(asked, draw, {})
        if part == 1:
            return whole
        return self._planned(asked, draw, {"epochs": max(1, round(whole[0].settings.epochs / part))})

    def _planned(self, asked: Request, draw: Draw, more: Mapping[str, Any]) -> list[RunSpec]:
        name, changes = parse_call(asked.protocol)
        values: dict[str, Any] = {**changes, "evaluation_split": "val", "selections": ["last"], **more}
        values |= {"val_images": self.search.images} if self.search.images else {}
        values |= {"lr": dict(draw.rates)} if draw.rates else {}
        protocol = f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})"
        request = replace(asked, protocol=protocol, seeds=asked.seeds or str(protocol_of(asked.protocol).seeds[0]))
        return specs_of(request, self.sha256, self.options.data, lambda _: [draw.method], lambda: self._groups)

    def part(self, rung: int) -> int:
        """What the epochs of a rung are divided by."""
        return int(2 ** (self.search.rungs - 1 - rung))

    def specs(self, alive: Mapping[Place, Sequence[int]], rung: int) -> list[RunSpec]:
        """The cells of a rung: all methods' first trials first, so that a search that is stopped has tried each equally often."""
        order = sorted(((number, i, place) for i, place in enumerate(alive) for number in alive[place]), key=lambda item: item[:2])
        return [s for number, _, place in order for name in place.datasets for s in self.cells(place.method, number, name, self.part(rung))]

    def of_place(self, place: Place, rungs: Sequence[Mapping[Place, Sequence[int]]]) -> list[RunSpec]:
        """All cells that were tried for a choice."""
        return [spec for rung, alive in enumerate(rungs) for spec in self.specs({place: alive[place]}, rung)]

    def score(self, place: Place, number: int, rung: int) -> float:
        """The mean of a trial's mIoU over data sets, draws and seeds; NaN where a cell failed."""
        return mean(self.miou(place.method, number, name, rung) for name in place.datasets)

    def miou(self, method: str, number: int, dataset: str, rung: int) -> float:
        """The same on one data set."""
        return mean(self._miou(spec) for spec in self.cells(method, number, dataset, self.part(rung)))

    def _miou(self, spec: RunSpec) -> float:
        return self.store.read(spec).scores["last"]["miou_all"] if self.store.status(spec).phase == "stored" else math.nan

    def open(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """Those that are neither stored nor failed."""
        return [spec for spec in specs if self.store.status(spec).phase not in ("stored", "failed")]

    def better_half(self, alive: Mapping[Place, Sequence[int]], rung: int) -> dict[Place, list[int]]:
        """Who goes on after a rung."""
        return {place: self.ranked(place, numbers, rung)[: -(-len(numbers) // 2)] for place, numbers in alive.items()}

    def ranked(self, place: Place, numbers: Sequence[int], rung: int) -> list[int]:
        """Trials from best to worst: of equal ones the earlier, and last those that failed."""
        scores = {number: self.score(place, number, rung) for number in numbers}
        return sorted(numbers, key=lambda number: (math.isnan(scores[number]), -scores[number], number))
