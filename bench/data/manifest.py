"""A data set's files with sizes and hashes, computed once and remembered; their fingerprint stands in every record.

What was computed is kept in `<out>/cache/manifests/`, never beside the user's images. A file is hashed again where its size or
time of change differs, so a second run, every worker and every SLURM job only look at the files' dates.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from bench.errors import DataError
from bench.grid.files import write_together
from bench.types import Dataset

FOLDER = "manifests"
DIGITS = 16  # of a fingerprint
WORTH_SAYING = 200_000_000  # bytes to hash
OnBytes = Callable[[int], None]  # told the bytes that were hashed just now


@dataclass(frozen=True)
class FileFacts:
    """A file's size in bytes, time of change in ns and sha256 in hex."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a data set, by their names in it. changed: names of those whose content is another one than was remembered,
    though size and time of change are the same; only looked for where all files are hashed again."""

    files: Mapping[str, FileFacts]
    changed: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Their size together."""
        return sum(facts.size for facts in self.files.values())

    @property
    def fingerprint(self) -> str | None:
        """Hex digits that follow from the files' names and contents, not from where they lie; None without files."""
        if not self.files:
            return None
        lines = [f"{name}\0{facts.size}\0{facts.sha256}\n" for name, facts in sorted(self.files.items())]
        return sha256("".join(lines).encode()).hexdigest()[:DIGITS]


def data_facts(dataset: Dataset, cache_dir: Path | None) -> dict[str, Any]:
    """What a record says of a data set and its files; a fingerprint of None is that of images which are drawn, not read."""
    manifest = manifest_of(dataset, cache_dir)
    own = {} if dataset.metric == Dataset.metric else {"metric": dataset.metric}
    return {**own, "title": dataset.title, "fingerprint": manifest.fingerprint, "files": len(manifest.files), "bytes": manifest.bytes}


def manifest_of(dataset: Dataset, cache_dir: Path | None, again: bool = False, on_bytes: OnBytes | None = None) -> Manifest:
    """The manifest of an open data set. again: hash every file, whatever is remembered.

    A cache that cannot be read or written is passed over; DataError where a file cannot be read.
    """
    paths = dataset.files()
    if not paths:
        return Manifest({})
    where = None if cache_dir is None else cache_dir / FOLDER / _name(dataset.name, paths)
    known = {} if where is None else _remembered(where)
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as threads:
        stats = dict(zip(paths, threads.map(_stat, paths.values()), strict=True))
        same = {name for name, facts in stats.items() if name in known and (known[name].size, known[name].mtime_ns) == facts}
        hashed = list(paths) if again else [name for name in paths if name not in same]
        found = {name: known[name] for name in same}
        for name, digest in zip(hashed, threads.map(_hash, (paths[name] for name in hashed)), strict=True):
            found[name] = FileFacts(*stats[name], digest)
            if on_bytes:
                on_bytes(stats[name][0])
    changed = tuple(sorted(name for name in same if known[name] != found[name]))
    manifest = Manifest({name: found[name] for name in sorted(found)}, changed)
    if where is not None and manifest.files != known:
        _remember(where, manifest)
    return manifest


def remember_data(datasets: Iterable[Dataset], cache_dir: Path) -> None:
    """Hashes what no manifest knows yet, before workers or jobs would all do it at once; says so where it takes a while."""
    for dataset in datasets:
        size = to_hash(dataset, cache_dir)
        if size >= WORTH_SAYING:
            print(f"Hashing the files of {dataset.name} once, {size / 1e9:.1f} GB, for its fingerprint.", file=sys.stderr, flush=True)
        manifest_of(dataset, cache_dir)


def to_hash(dataset: Dataset, cache_dir: Path | None) -> int:
    """The bytes of the files that no manifest in the cache knows; of all without a cache."""
    paths = dataset.files()
    known = _remembered(cache_dir / FOLDER / _name(dataset.name, paths)) if paths and cache_dir else {}
    return sum(_stat(path)[0] for name, path in paths.items() if name not in known)


def _name(dataset: str, paths: Mapping[str, Path]) -> str:
    """A file's name for each data set and place, so that two copies of it do not overwrite each other's."""
    place = os.path.commonpath([os.path.abspath(path.parent) for path in paths.values()])
    return f"{dataset}_{sha256(place.encode()).hexdigest()[:8]}.json"


def _stat(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"The file {path} cannot be read: {error.strerror}.") from None
    return facts.st_size, facts.st_mtime_ns


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"The file {path} cannot be read: {error.strerror}.") from None


def _remembered(where: Path) -> dict[str, FileFacts]:
    try:
        return {str(name): FileFacts(int(size), int(mtime), str(digest)) for name, size, mtime, digest in json.loads(where.read_bytes())}
    except (OSError, ValueError, TypeError):
        return {}


def _remember(where: Path, manifest: Manifest) -> None:
    rows = [[name, facts.size, facts.mtime_ns, facts.sha256] for name, facts in manifest.files.items()]
    with suppress(OSError):
        write_together(where.parent, {where.name: json.dumps(rows, indent=0).encode()}, durable=False)
