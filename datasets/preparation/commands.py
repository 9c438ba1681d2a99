"""The commands `where` and `prepare` of `datasets.prepare`, and `verify` with what it prints."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from bench.errors import RequestError
from bench.grid.registry import DATASETS
from datasets.folder import ArchiveDataset
from datasets.preparation.locations import Top, folder_in, in_units, link, missing, partial, tops
from datasets.preparation.progress import progress_bar
from datasets.preparation.summary import summary
from datasets.preparation.unpack import plan, unpack
from datasets.preparation.verify import verify


def where(name: str | None, data: Path) -> int:
    """Prints where each official archive is found and what it must hold; 0."""
    for cls in [_archived(name)] if name else _all_archived():
        print(f"{cls.title} ({cls.name})\n  page      {cls.home}\n  download  {' and '.join(cls.zips)}: {cls.archive}")
        for top in tops(cls):
            print(f"  holds     {top}")
        for split, expected in cls.expected.items():
            foreign = f", and {expected.foreign:,} that are passed over" if expected.foreign else ""
            print(f"  images    {expected.images:,} of the {split} split{foreign}")
        for head, text in (("licence", cls.licence), ("ours", cls.ours)):
            print(f"  {head:<9} {text}" if text else "", end="\n" if text else "")
        print(f"  then      python -m datasets.prepare {cls.name} --from {shlex.join(cls.zips)} --data {shlex.quote(str(data))}\n")
    return 0


def prepare(name: str, data: Path, sources: Sequence[Path]) -> int:
    """Unpacks or links what `sources` hold of a data set's archives into `data/<name>`; 0, or 1 while something is missing still."""
    cls = _archived(name)
    root, wanted = cls.place(data), tops(cls)
    if not sources:
        raise RequestError(f"--from is needed: {' and '.join(cls.zips)}; `python -m datasets.prepare where {name}` says where they are.")
    links = {source: {top: at for top in wanted if (at := folder_in(source, top))} for source in sources if source.is_dir()}
    plans = {source: plan(source, root, wanted) for source in sources if source not in links}
    _check(name, wanted, {**links, **{source: one.tops for source, one in plans.items()}})
    for found in links.values():
        for top, at in found.items():
            print(link(at, root, top))
    size = sum(one.bytes for one in plans.values())
    with progress_bar(f"Unpacking {in_units(size)} to {root}", size) as on_bytes:
        unpack(list(plans.values()), root, on_bytes)
    for one in plans.values():
        there = f", {one.there:,} were there" if one.there else ""
        print(f"{one.archive}: {len(one.members):,} files unpacked to {root}{there}.")
    lacking = missing(root, wanted)
    for top in lacking:
        print(f"Still missing: {top}; `python -m datasets.prepare where {name}` says where to get it.")
    if not lacking:
        print(f"Now: python -m datasets.prepare verify {name} --data {shlex.quote(str(data))}")
    return 1 if lacking else 0


def verified(name: str, data: Path, cache_dir: Path, show: int) -> int:
    """Prints what is wrong with a data set and what a run would see of it; 0, or 1 where something is wrong."""
    DATASETS.find_in(data)
    cls = DATASETS.get(name)
    if issubclass(cls, ArchiveDataset) and not data.is_dir():
        raise RequestError(f"--data {data} is no folder; `python -m datasets.prepare where {name}` says what belongs there.")
    found = verify(cls, data, cache_dir)
    print(summary(cls, data, found, show))
    return 1 if any(finding.is_problem for finding in found.findings) else 0


def _check(name: str, wanted: Sequence[Top], held: dict[Path, Sequence[Top] | dict[Top, Path]]) -> None:
    """RequestError for a source that holds nothing that is needed, and for two that hold the same."""
    for source, of_source in held.items():
        if not of_source and (lacks := partial(source, wanted)):
            raise RequestError(f"{source} is another release of {name}'s archive, or not all of it: {lacks}.")
        if not of_source:
            raise RequestError(f"{source} holds nothing that {name} needs: {'; or '.join(map(str, wanted))}.")
    for top in wanted:
        twice = [str(source) for source, of_source in held.items() if top in of_source]
        if len(twice) > 1:
            raise RequestError(f"{' and '.join(twice)} both hold {top.name}; one of them is enough.")


def _archived(name: str) -> type[ArchiveDataset]:
    cls = DATASETS.get(name)
    if not issubclass(cls, ArchiveDataset):
        raise RequestError(f"Data set {name} has no archive to put into place; {', '.join(one.name for one in _all_archived())} have.")
    return cls


def _all_archived() -> list[type[ArchiveDataset]]:
    return [cls for cls in map(DATASETS.get, DATASETS.names()) if issubclass(cls, ArchiveDataset)]
