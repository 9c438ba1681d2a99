"""From cells to arrays: equal requests together, short cells several a job, no array larger than the site allows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cluster.profile import Profile
from bench.grid.spec import RunSpec

Pack = tuple[str, ...]  # the keys of the cells that one job runs, one after the other


@dataclass(frozen=True)
class ArrayPlan:
    """An array to be sent: its flags, its jobs, how long before the limit SLURM warns them, and how many may run at a time."""

    flags: dict[str, Any]
    packs: tuple[Pack, ...]
    signal_s: int
    parallel: int


def array_plans(specs: Sequence[RunSpec], profile: Profile, untrained: frozenset[str], array_size: int) -> list[ArrayPlan]:
    """The arrays for these cells, at most `array_size` jobs each; the profile's throttle is shared among them by their sizes."""
    requests: dict[tuple[Any, ...], list[Pack]] = {}
    asked: dict[tuple[Any, ...], Profile] = {}
    for own, cells in _alike(specs, profile):
        request = (own.signal_s, *map(str, own.sbatch_flags().items()))
        asked[request] = own
        short = [spec.key for spec in cells if spec.method.name in untrained]
        long = [spec.key for spec in cells if spec.method.name not in untrained]
        packs = [*_cut(long, own.cells_per_job), *_cut(short, max(own.cells_per_job, own.evaluations_per_job))]
        requests.setdefault(request, []).extend(packs)
    chunks = [(asked[request], chunk) for request, packs in requests.items() for chunk in _cut(packs, array_size)]
    throttles = _shares(profile.parallel, [len(chunk) for _, chunk in chunks])
    return [ArrayPlan(own.sbatch_flags(), chunk, own.signal_s, throttle) for (own, chunk), throttle in zip(chunks, throttles, strict=True)]


def _alike(specs: Iterable[RunSpec], profile: Profile) -> Iterator[tuple[Profile, list[RunSpec]]]:
    """Cells by what they ask for, each group in the order of the grid."""
    groups: dict[str, tuple[Profile, list[RunSpec]]] = {}
    for spec in specs:
        own = profile.of_cell(spec)
        groups.setdefault(repr(own), (own, []))[1].append(spec)
    yield from groups.values()


def _cut(items: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(items[at : at + size]) for at in range(0, len(items), size)]


def _shares(parallel: int, sizes: Sequence[int]) -> list[int]:
    """How many jobs of each array may run at a time, so that no more than `parallel` do in all, but at least one of each."""
    if not parallel:
        return list(sizes)
    return [max(1, min(size, parallel * size // sum(sizes))) for size in sizes]


def shown(plan: ArrayPlan) -> str:
    """An array in a few words."""
    flags = " ".join(f"{name}={value}" for name, value in plan.flags.items() if name not in ("nodes", "ntasks"))
    cells = sum(map(len, plan.packs))
    return f"{len(plan.packs)} jobs for {cells} cells, {plan.parallel} at a time: {flags}"
