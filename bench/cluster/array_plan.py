"""From cells to arrays: equal requests together, short cells several a job, no array larger than the site allows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.cluster.profile import Profile
from bench.errors import counted
from bench.grid.spec import RunSpec

Pack = tuple[str, ...]  # the keys of the cells that one job runs, one after the other


@dataclass(frozen=True)
class ArrayPlan:
    """An array to be sent: its flags, its jobs, how long before the limit SLURM warns them, and how many may run at a time. after: the
    number of the array of this launch that it begins behind; None for one that need not wait."""

    flags: dict[str, Any]
    packs: tuple[Pack, ...]
    signal_s: int
    parallel: int
    after: int | None = None
    mem_max_mb: int = 0  # of a second try after a node ended the job for its memory


def array_plans(specs: Sequence[RunSpec], profile: Profile, array_size: int) -> list[ArrayPlan]:
    """The arrays for these cells, at most `array_size` jobs each; the profile's throttle is shared among them by their sizes.

    Where there are more arrays than jobs may run at a time, arrays begin behind others, so that the throttle holds over all.
    """
    array_size = min(array_size, profile.max_array_tasks or array_size)
    requests: dict[tuple[Any, ...], list[Pack]] = {}
    asked: dict[tuple[Any, ...], Profile] = {}
    for own, cells in _grouped(specs, profile):
        request = (own.signal_s, own.mem_gb_max, *map(str, own.sbatch_flags().items()))
        asked[request] = own
        short = [spec.key for spec in cells if not spec.method.trains]
        long = [spec.key for spec in cells if spec.method.trains]
        together = max(own.cells_per_job, own.at_once)
        packs = [*_cut(long, together), *_cut(short, max(together, own.evaluations_per_job))]
        requests.setdefault(request, []).extend(packs)
    chunks = [(asked[request], chunk) for request, packs in requests.items() for chunk in _cut(packs, array_size)]
    lanes = min(len(chunks), profile.parallel) or len(chunks)
    lane_sizes = [sum(len(chunk) for _, chunk in chunks[lane::lanes]) for lane in range(lanes)]
    throttles = _shares(profile.parallel, lane_sizes)
    plans = []
    for at, (own, chunk) in enumerate(chunks):
        parallel, after = min(len(chunk), throttles[at % lanes]), at - lanes if at >= lanes else None
        plans.append(ArrayPlan(own.sbatch_flags(), chunk, own.signal_s, parallel, after, round(own.mem_gb_max * 1024)))
    return plans


def _grouped(specs: Iterable[RunSpec], profile: Profile) -> Iterator[tuple[Profile, list[RunSpec]]]:
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
    shares = [max(1, min(size, parallel * size // sum(sizes))) for size in sizes]
    while sum(shares) > parallel:  # a small one's least was taken from nobody
        shares[shares.index(max(shares))] -= 1
    return shares


def shown(plan: ArrayPlan) -> str:
    """An array in a few words."""
    flags = " ".join(f"{name}={value}" for name, value in plan.flags.items() if name not in ("nodes", "ntasks"))
    cells = sum(map(len, plan.packs))
    return f"{counted(len(plan.packs), 'job')} for {counted(cells, 'cell')}, {plan.parallel} at a time: {flags}"
